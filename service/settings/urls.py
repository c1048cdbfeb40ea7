"""Parsers of DATABASE_URL and MAIL_URL, which also accept unescaped passwords."""

import re
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import parse_qsl, unquote

from service.settings.connections import Database, MailServer
from service.settings.variables import Parser, SettingsError

SSLMODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
DATABASE_URL_FORM = "postgresql://user:password@host:port/name (libpq's connection URI)"

# In both URLs the password runs to the last "@", so that one with "@", "/", "?", "#" or ":" works
# unescaped too. A well-formed URL escapes these and is parsed the same way.
_DATABASE_URL = re.compile(
    r"postgres(?:ql)?://(?:(?P<user>[^:@]*)(?::(?P<password>.*))?@)?"
    r"(?P<hosts>[^/?@]*)(?:/(?P<name>[^?@]*))?(?:\?(?P<query>[^@]*))?",
    re.DOTALL,
)
_HOST_AND_PORT = re.compile(r"(?P<host>\[[0-9A-Fa-f:.%]+\]|[^:\[\]]*)(?::(?P<port>\d*))?")
_MAIL_URL = re.compile(
    r"(?P<scheme>smtp|smtp\+starttls|smtps)://(?:(?P<user>[^:]*)(?::(?P<password>.*))?@)?"
    r"(?P<host>\[[0-9A-Fa-f:.%]+\]|[^:@/?#\[\]\s]+)(?::(?P<port>\d{1,5}))?/?",
    re.DOTALL,
)
_MAIL_SCHEMES = {"smtp": ("none", 25), "smtp+starttls": ("starttls", 587), "smtps": ("tls", 465)}

# Options of a connection URI that asyncpg and libpq both support.
_OPTIONS = {
    "application_name",
    "sslcert",
    "sslkey",
    "sslmode",
    "sslrootcert",
    "target_session_attrs",
}
# Options that hosted databases put into their URIs and only libpq supports. They are ignored:
# asyncpg has its own deadlines and keep-alive, and handles channel binding itself.
_LIBPQ_ONLY = {
    "channel_binding",
    "connect_timeout",
    "gssencmode",
    "keepalives",
    "keepalives_count",
    "keepalives_idle",
    "keepalives_interval",
    "sslsni",
    "tcp_user_timeout",
}


def parse_database_url(
    url: str, options: Mapping[str, str], password_file: Path | None
) -> Database:
    """Parse the URL as libpq does; ``options`` override the options in the URL.

    Raises SettingsError.
    """
    malformed = SettingsError(f"DATABASE_URL: expected {DATABASE_URL_FORM}")
    match = _DATABASE_URL.fullmatch(url)
    if match is None:
        raise malformed
    query = dict(parse_qsl(match["query"] or "", keep_blank_values=True))
    hosts, ports = [], []
    for text in match["hosts"].split(","):
        pair = _HOST_AND_PORT.fullmatch(text)
        if pair is None:
            raise malformed
        hosts.append(unquote(pair["host"]).strip("[]"))
        ports.append(pair["port"] or "")
    query_host, query_port = query.pop("host", ""), query.pop("port", "")
    if query_host or query_port:
        hosts = query_host.split(",") if query_host else hosts
        ports = query_port.split(",")
    query_password = query.pop("password", "")
    user = query.pop("user", "") or unquote(match["user"] or "")
    name = query.pop("dbname", "") or unquote(match["name"] or "") or user
    if not user or not any(hosts):
        raise malformed
    kept = {name: value for name, value in query.items() if name not in _LIBPQ_ONLY}
    unknown = set(kept) - _OPTIONS
    if unknown:
        raise SettingsError(f"DATABASE_URL: unknown option {min(unknown)}")
    if kept.get("sslmode", "prefer") not in SSLMODES:
        raise SettingsError("DATABASE_URL: sslmode: expected one of " + ", ".join(SSLMODES))
    return Database(
        hosts=pair_hosts(hosts, ports, "DATABASE_URL"),
        name=name,
        user=user,
        password=query_password or unquote(match["password"] or ""),
        password_file=password_file,
        options=tuple({**kept, **options}.items()),
    )


def pair_hosts(hosts: list[str], ports: list[str], variable: str) -> tuple[tuple[str, int], ...]:
    """Pair each host with its port. As in libpq, one port is for all hosts; empty means 5432.

    Raises SettingsError, which names ``variable``.
    """
    if len(ports) == 1:
        ports = ports * len(hosts)
    if len(ports) != len(hosts):
        raise SettingsError(f"{variable}: expected one port, or one for each host")
    numbers = [int(port or 5432) if port.isdecimal() or not port else 0 for port in ports]
    if not all(0 < number < 65536 for number in numbers):
        raise SettingsError(f"{variable}: expected a port from 1 to 65535")
    return tuple(zip((host.strip() for host in hosts), numbers, strict=True))


def _parse_mail_url(url: str) -> MailServer:
    match = _MAIL_URL.fullmatch(url)
    if match is None:
        raise ValueError
    security, usual_port = _MAIL_SCHEMES[match["scheme"]]
    port = int(match["port"] or usual_port)
    if not 0 < port < 65536:
        raise ValueError
    return MailServer(
        host=match["host"].strip("[]"),
        port=port,
        security=security,
        user=unquote(match["user"] or ""),
        password=unquote(match["password"] or ""),
    )


MAIL_URL = Parser(
    "smtp://, smtp+starttls:// or smtps://, then user:password@host:port", _parse_mail_url
)
