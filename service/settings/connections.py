"""How to reach PostgreSQL and the mail server."""

import contextlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import IPv6Address, ip_address
from pathlib import Path
from socket import inet_aton
from ssl import SSLContext, TLSVersion, VerifyFlags, create_default_context
from typing import Any
from urllib.parse import urlencode

_ACCESS_TOKEN = re.compile("[A-Za-z0-9._~+/-]+=*")
# The application_name of connections, unless the database's options have one.
APPLICATION_NAME = "shinkei"


@dataclass(frozen=True, slots=True)
class Database:
    """How to reach PostgreSQL and sign in, in libpq's terms.

    ``options`` holds the libpq parameters that asyncpg and psycopg both understand (sslmode,
    sslrootcert, target_session_attrs, options, …). Behind ``pgbouncer``, in transaction mode, no
    state may outlive a transaction, so no connection names a statement or sets anything for its
    session.
    """

    hosts: tuple[tuple[str, int], ...]
    name: str
    user: str
    password: str = field(default="", repr=False)
    password_file: Path | None = None
    options: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    pgbouncer: bool = False

    def __post_init__(self) -> None:
        options = dict(self.options)
        if options.get("sslmode") == "verify-full" and "sslrootcert" not in options:
            # Since libpq 16, "system" means the authorities that the system trusts.
            object.__setattr__(self, "options", (*self.options, ("sslrootcert", "system")))
        elif options.get("sslrootcert") == "system" and "sslmode" not in options:
            object.__setattr__(self, "options", (*self.options, ("sslmode", "verify-full")))

    @property
    def address(self) -> str:
        """Host and port of each server, for display: ``db1:5432,[::1]:5432``."""
        return ",".join(f"{in_brackets(host)}:{port}" for host, port in self.hosts)

    def read_password(self) -> str:
        """Return the current password. A password file is read each time, so that it can rotate."""
        if self.password_file is None:
            return self.password
        return self.password_file.read_text(encoding="utf-8-sig").rstrip("\r\n")

    def asyncpg_arguments(self) -> dict[str, Any]:
        """Return keyword arguments for ``asyncpg.connect`` and ``asyncpg.create_pool``."""
        options = {"application_name": APPLICATION_NAME, **dict(self.options)}
        trusted = {}
        if options.get("sslrootcert") == "system":
            trusted["ssl"] = _trust_system(options)
            del options["sslrootcert"]
        return {
            **trusted,
            "dsn": f"postgresql://?{urlencode(options)}",
            "host": [host for host, _ in self.hosts],
            "port": [port for _, port in self.hosts],
            "user": self.user,
            # Without one, both drivers look for PGPASSWORD and ~/.pgpass.
            "password": self.read_password if self.password or self.password_file else None,
            "database": self.name,
            **({"statement_cache_size": 0} if self.pgbouncer else {}),
        }

    def libpq_arguments(self) -> dict[str, Any]:
        """Return keyword arguments for ``psycopg.connect``, which then never names a statement."""
        return {
            "host": ",".join(host for host, _ in self.hosts),
            "port": ",".join(str(port) for _, port in self.hosts),
            "user": self.user,
            "password": self.read_password() or None,
            "dbname": self.name,
            "application_name": APPLICATION_NAME,
            "prepare_threshold": None,
            **dict(self.options),
        }


def in_brackets(host: str) -> str:
    """Return the host as a URL has it: an IPv6 literal in brackets (RFC 3986 §3.2.2, RFC 6874)."""
    if ":" not in host or host.startswith("/"):
        return host
    return f"[{host.replace('%', '%25')}]"


def http_origin(host: str, port: int) -> str:
    """Return the origin of a server that speaks HTTP on this host and port.

    Pages of an IP address have no passkeys, so 127.0.0.1 is called ``localhost``. ``::1`` is not:
    that name may be only of the other.
    """
    return f"http://{'localhost' if host == '127.0.0.1' else in_brackets(host)}:{port}"


def default_origin(host: str, port: int) -> str:
    """Return the origin for this machine's browsers, on any interface that the host means."""
    return http_origin("localhost" if is_wildcard(host) else host, port)


def is_wildcard(host: str) -> bool:
    """Return whether listening on this host means every interface: ``0.0.0.0``, ``::``, ``0``."""
    try:
        ip = ip_address(host)
    except ValueError:
        with contextlib.suppress(OSError):
            return inet_aton(host) == bytes(4)
        return False
    mapped = ip.ipv4_mapped if isinstance(ip, IPv6Address) else None
    return (mapped or ip).is_unspecified


def is_local(host: str) -> bool:
    """Return whether a connection to this host stays on this machine."""
    if host == "localhost" or host.startswith("/") or is_wildcard(host):
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def _trust_system(options: Mapping[str, str]) -> SSLContext:
    """Return a context that trusts the system's authorities, for which asyncpg has no option.

    Next to a context, asyncpg ignores all other options for certificates and versions.
    """
    context = create_default_context()
    context.set_alpn_protocols(["postgresql"])
    if "sslcert" in options:
        context.load_cert_chain(
            options["sslcert"], options.get("sslkey"), options.get("sslpassword", "")
        )
    if "sslcrl" in options:
        context.load_verify_locations(options["sslcrl"])
        context.verify_flags |= VerifyFlags.VERIFY_CRL_CHECK_CHAIN
    for bound in ("minimum_version", "maximum_version"):
        version = options.get(f"ssl_{bound[:3]}_protocol_version")
        if version:
            setattr(context, bound, TLSVersion[version.replace(".", "_")])
    return context


@dataclass(frozen=True, slots=True)
class MailServer:
    """The SMTP server for outgoing mail, with credentials if ``user`` is set.

    ``security`` is none, starttls (which the server must then offer), or tls from the first byte.
    With a ``token_file``, the user signs in with an access token instead of a password.
    """

    host: str
    port: int
    security: str
    user: str = ""
    password: str = field(default="", repr=False)
    token_file: Path | None = None

    def read_token(self) -> str | None:
        """Return the current access token, if the server takes one. It may rotate in its file.

        Raises OSError, or ValueError if the file holds anything but a token (RFC 6750 §2.1).
        """
        if self.token_file is None:
            return None
        token = self.token_file.read_text(encoding="utf-8-sig").strip()
        if not _ACCESS_TOKEN.fullmatch(token):
            raise ValueError("not an access token")
        return token
