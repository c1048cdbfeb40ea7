"""Checks of this process and machine: variables, limits, disks, password hashes."""

import os
import resource
import shutil
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.parse import urlsplit

from service.auth.passwords import ITERATIONS_MIN, MEMORY_MIN_KIB, measure_ms, threads_per_process
from service.doctor.findings import Finding, fail, ok, warn, within
from service.embedded import server as embedded
from service.embedded.binaries import require_wanted
from service.embedded.cluster import read_secret
from service.exceptions import StartError
from service.factors.webauthn import relying_party
from service.settings import VARIABLES, Database, Settings, SettingsError, is_local
from service.settings.unknown import find_unknown

DEADLINE_S = 5
HASH_SLOW_MS = 1000
FREE_FAIL_BYTES = 100 * 1024**2
FREE_WARN_BYTES = 1024**3
# Not for clients: logs, the listener, the event loop, a few files.
FILES_ASIDE = 32
FILES_WANTED = 1024


def check_variables(environ: Mapping[str, str]) -> Iterator[Finding]:
    """Report the settings that are set, and variables that were probably meant as settings."""
    given = [name for name in VARIABLES if environ.get(name, "").strip()]
    yield ok("settings", f"set: {', '.join(given)}" if given else "all defaults")
    for name, meant in find_unknown(environ):
        fix = f"Did you mean {meant}?" if meant else "docs/configuration.md lists all settings."
        yield warn("settings", f"{name} is not a setting and is ignored", fix)


def check_files(settings: Settings) -> Iterator[Finding]:
    """Check the limit on open files, as each client connection takes one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = settings.db_pool_size + FILES_ASIDE
    if soft == resource.RLIM_INFINITY:
        yield ok("files", "no limit on open files")
    elif soft < needed:
        yield fail(
            "files", f"only {soft} open files; the service needs {needed}", _more_files(hard)
        )
    elif soft < FILES_WANTED:
        clients = soft - needed
        yield warn(
            "files", f"{soft} open files: at most {clients} clients at once", _more_files(hard)
        )
    else:
        yield ok("files", f"{soft} open files: about {soft - needed} clients at once")


def _more_files(hard: int) -> str:
    return f"Raise the limit: ulimit -n (up to {hard} here), or LimitNOFILE= in a systemd unit."


def check_data_dir(settings: Settings) -> Iterator[Finding]:
    """Check DATA_DIR if it is used: for the embedded server's data, or for emails."""
    if settings.database is not None and settings.mail_server is not None:
        return
    path = settings.data_dir
    # Missing directories are created when they are needed.
    existing = next(each for each in (path, *path.parents) if each.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        detail = f"this user cannot write to {existing}"
        yield fail("data", detail, "Set DATA_DIR to a directory that this user can write to.")
        return
    try:
        free_bytes = within(DEADLINE_S, shutil.disk_usage, existing).free
    except TimeoutError:
        yield fail("data", f"{existing} does not respond", "Check the disk, or change DATA_DIR.")
        return
    free = f"{path}: {free_bytes / 1024**3:.1f} GiB free"
    if free_bytes < FREE_FAIL_BYTES:
        yield fail("data", free, "Free some space, or set DATA_DIR to another disk.")
    elif free_bytes < FREE_WARN_BYTES:
        yield warn("data", free, "Free some space, or set DATA_DIR to another disk.")
    else:
        yield ok("data", free)
    if path.is_dir() and path.stat().st_mode & stat.S_IWOTH:
        yield fail("data", f"any user can replace files in {path}", f"chmod o-w {path}")
    for name in ("secret_key", "postgres_password"):
        yield from _check_private(path / name)


def _check_private(path: Path) -> Iterator[Finding]:
    try:
        mode = path.stat().st_mode
    except OSError:
        return
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        yield fail("data", f"other users have access to {path}", f"chmod 600 {path}")


def check_embedded(
    settings: Settings, environ: Mapping[str, str]
) -> tuple[list[Finding], Database | None, str]:
    """Check that ``serve`` would use the embedded server, and could.

    Returns findings, the database (None if the server is not running), and the secret key, if any.
    """
    intro = "no DATABASE_URL or DB_HOST: serve uses the embedded PostgreSQL"
    try:
        require_wanted(settings.data_dir, environ)
    except SettingsError as error:
        return [fail("settings", str(error), "Set DATABASE_URL.")], None, ""
    try:
        database, where = within(DEADLINE_S, embedded.inspect_data_dir, settings.data_dir)
        kept = settings.data_dir / "secret_key"
        secret_key = settings.secret_key or (read_secret(kept) if kept.exists() else "")
    except StartError as error:
        return [fail("embedded", f"{intro}, but {error}", _FIX_EMBEDDED)], None, ""
    except TimeoutError:
        return [fail("embedded", f"{intro}, which does not respond", _FIX_EMBEDDED)], None, ""
    except OSError as error:
        detail = f"{intro}, but {error.filename}: {error.strerror}"
        return [fail("embedded", detail, _FIX_EMBEDDED)], None, ""
    if database is None:
        return [ok("embedded", f"{intro}, {where}; it is not running")], None, ""
    found = [ok("embedded", f"{intro}, running on port {database.hosts[0][1]}")]
    return found, database, secret_key


_FIX_EMBEDDED = "Fix that, or set DATABASE_URL to your own PostgreSQL."


def check_passwords(settings: Settings) -> Iterator[Finding]:
    """Check the time and the strength of a password hash with the current settings."""
    memory_kib, iterations = settings.password_hash_memory_kib, settings.password_hash_iterations
    cost = f"{memory_kib} KiB, {iterations} iterations"
    threads = settings.workers * threads_per_process(settings)
    at_once = min(threads, os.cpu_count() or 1)
    fix = "Run shinkei calibrate-passwords to find settings for this machine."
    try:
        hash_ms = within(DEADLINE_S, measure_ms, memory_kib, iterations, 1)
    except TimeoutError:
        yield fail("passwords", f"a hash ({cost}) takes longer than {DEADLINE_S} s", fix)
        return
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        if isinstance(error, MemoryError) or "Memory allocation" in reason:
            reason = "not enough memory"
        yield fail("passwords", f"a hash ({cost}) cannot be computed: {reason}", fix)
        return
    detail = (
        f"a hash ({cost}) takes {hash_ms:.0f} ms: about {at_once * 1000 / max(hash_ms, 1):.0f}"
        f" sign-ins a second, {threads * memory_kib / 1024:.0f} MiB"
    )
    if memory_kib < MEMORY_MIN_KIB or iterations < ITERATIONS_MIN:
        least = f"{MEMORY_MIN_KIB} KiB and {ITERATIONS_MIN} iterations"
        yield warn("passwords", f"{detail}; OWASP's minimum is {least}", fix)
    elif hash_ms > HASH_SLOW_MS:
        yield warn("passwords", detail, fix)
    else:
        yield ok("passwords", detail)


def check_origin(settings: Settings, environ: Mapping[str, str]) -> Iterator[Finding]:
    """Check PUBLIC_ORIGIN, the start of links in emails."""
    origin = settings.public_origin
    url = urlsplit(origin)
    development = settings.database is None and settings.mail_server is None
    if development:
        yield ok("origin", f"links in emails begin with {origin}")
    elif not environ.get("PUBLIC_ORIGIN", "").strip() or is_local(url.hostname or ""):
        detail = f"links in emails begin with {origin}, which may not work on other machines"
        yield warn(
            "origin", detail, "Set PUBLIC_ORIGIN to your front end, such as https://app.example."
        )
    elif url.scheme == "http":
        detail = f"links in emails begin with {origin}: their tokens are sent in the clear"
        yield warn("origin", detail, "Terminate TLS in a proxy, and set PUBLIC_ORIGIN to https://…")
    else:
        yield ok("origin", f"links in emails begin with {origin}")


def check_passkeys(settings: Settings) -> Iterator[Finding]:
    """Check that some page can use passkeys."""
    rp = relying_party(settings)
    if rp is None:
        detail = f"passkeys are off: pages of {settings.public_origin} cannot use any"
        fix = "Set PUBLIC_ORIGIN to an origin with https:// and a domain name, or set RP_ID."
        yield warn("passkeys", detail, fix)
    else:
        yield ok("passkeys", f"passkeys of {rp.id} work on {', '.join(sorted(rp.origins))}")
