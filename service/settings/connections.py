"""How to reach PostgreSQL and the mail server."""

from dataclasses import dataclass, field
from pathlib import Path
from ssl import create_default_context
from typing import Any
from urllib.parse import urlencode


@dataclass(frozen=True, slots=True)
class Database:
    """How to reach PostgreSQL and sign in, in libpq's terms.

    ``options`` holds the libpq parameters that asyncpg and psycopg both understand (sslmode,
    sslrootcert, target_session_attrs, …). Behind ``pgbouncer``, in transaction mode, no state may
    outlive a transaction, so no connection names a statement or sets anything for its session.
    """

    hosts: tuple[tuple[str, int], ...]
    name: str
    user: str
    password: str = field(default="", repr=False)
    password_file: Path | None = None
    options: tuple[tuple[str, str], ...] = ()
    pgbouncer: bool = False

    def __post_init__(self) -> None:
        options = dict(self.options)
        if options.get("sslmode") == "verify-full" and "sslrootcert" not in options:
            # Since libpq 16, "system" means the authorities that the system trusts.
            object.__setattr__(self, "options", (*self.options, ("sslrootcert", "system")))

    @property
    def address(self) -> str:
        """Host and port of each server, for display: ``db1:5432,db2:5432``."""
        return ",".join(f"{host}:{port}" for host, port in self.hosts)

    def read_password(self) -> str:
        """Return the current password. A password file is read each time, so that it can rotate."""
        if self.password_file is None:
            return self.password
        return self.password_file.read_text(encoding="utf-8-sig").rstrip("\r\n")

    def asyncpg_arguments(self) -> dict[str, Any]:
        """Return keyword arguments for ``asyncpg.connect`` and ``asyncpg.create_pool``."""
        # asyncpg does not support "system"; the default context trusts the same authorities.
        options = {name: value for name, value in self.options if value != "system"}
        trusted = {"ssl": create_default_context()} if len(options) < len(self.options) else {}
        return {
            **trusted,
            "dsn": f"postgresql://?{urlencode(options)}" if options else None,
            "host": [host for host, _ in self.hosts],
            "port": [port for _, port in self.hosts],
            "user": self.user,
            "password": self.read_password,
            "database": self.name,
            **({"statement_cache_size": 0} if self.pgbouncer else {}),
        }

    def libpq_arguments(self) -> dict[str, Any]:
        """Return keyword arguments for ``psycopg.connect``, which then never names a statement."""
        return {
            "host": ",".join(host for host, _ in self.hosts),
            "port": ",".join(str(port) for _, port in self.hosts),
            "user": self.user,
            "password": self.read_password(),
            "dbname": self.name,
            "prepare_threshold": None,
            **dict(self.options),
        }


@dataclass(frozen=True, slots=True)
class MailServer:
    """The SMTP server for outgoing mail, with credentials if ``user`` is set.

    ``security`` is none, starttls (which the server must then offer), or tls from the first byte.
    """

    host: str
    port: int
    security: str
    user: str = ""
    password: str = field(default="", repr=False)
