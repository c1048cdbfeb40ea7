"""Parsers of the URLs of databases and of MAIL_URL, which also accept unescaped passwords."""

import re
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import unquote, unquote_to_bytes

from service.settings.connections import Database, MailServer
from service.settings.variables import Parser, SettingsError

SSLMODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
DATABASE_URL_FORM = "postgresql://user:password@host:port/name (libpq's connection URI)"

# A URI as libpq reads it: no "@" or "/" in the user and password, and after the hosts any
# character. Only hosts and ports are as strict as in RFC 3986, so that libpq's reading of an
# unescaped password as a host does not match.
_HOST = r"(?:\[[^\[\]@,/?#\s]+\]|[^\[\]:@,/?#\s\"<>\\^`{|}]*)(?::(?:[0-9]|%3[0-9])*)?"
_HOSTS = rf"(?P<host>{_HOST}(?:,{_HOST})*)"
_URI = re.compile(
    r"postgres(?:ql)?://(?:(?P<user>[^:@/]*)(?::(?P<password>[^@/]*))?@)?+"
    rf"{_HOSTS}(?:/(?P<dbname>[^?]*))?(?:\?(?P<query>.*))?"
)
# No URI, because of an unescaped password. It runs to the last "@".
_UNESCAPED = re.compile(
    r"postgres(?:ql)?://(?P<user>[^:@/]*):(?P<password>.*)@"
    rf"{_HOSTS}(?:/(?P<dbname>[^?@]*))?(?:\?(?P<query>[^@]*))?"
)
_BAD_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")
_MAIL_URL = re.compile(
    r"(?P<scheme>smtp|smtp\+starttls|smtps)://(?:(?P<user>[^:]*)(?::(?P<password>.*))?@)?"
    r"(?P<host>\[[0-9A-Fa-f:.%]+\]|[^:@/?#\[\]\s]+)(?::(?P<port>\d{1,5}))?/?",
    re.DOTALL,
)
_MAIL_SCHEMES = {"smtp": ("none", 25), "smtp+starttls": ("starttls", 587), "smtps": ("tls", 465)}

_TLS_VERSIONS = ("TLSv1", "TLSv1.1", "TLSv1.2", "TLSv1.3")
# Options that asyncpg and libpq both support, with their values, or () for any.
_SHARED: dict[str, tuple[str, ...]] = {
    "application_name": (),
    "krbsrvname": (),
    "options": (),
    "ssl_max_protocol_version": _TLS_VERSIONS,
    "ssl_min_protocol_version": _TLS_VERSIONS,
    "sslcert": (),
    "sslcrl": (),
    "sslkey": (),
    "sslmode": SSLMODES,
    "sslnegotiation": ("postgres", "direct"),
    "sslpassword": (),
    "sslrootcert": (),
    "target_session_attrs": (
        "any",
        "read-write",
        "read-only",
        "primary",
        "standby",
        "prefer-standby",
    ),
}
# Options that only tune what the service has its own deadlines for, or that libpq ignores too.
_IGNORED = {
    "connect_timeout",
    "fallback_application_name",
    "keepalives",
    "keepalives_count",
    "keepalives_idle",
    "keepalives_interval",
    "sslcompression",
    "tcp_user_timeout",
}
# Options that asyncpg lacks, with the values that describe what it does anyway.
_FIXED: dict[str, tuple[str, ...]] = {
    "channel_binding": ("disable", "prefer"),
    "client_encoding": ("UTF8", "UTF-8", "utf8", "utf-8"),
    "gssdelegation": ("0",),
    "gssencmode": ("disable", "prefer"),
    "gsslib": ("gssapi",),
    "load_balance_hosts": ("disable",),
    "max_protocol_version": ("3.0", "3.2", "latest"),
    "min_protocol_version": ("3.0",),
    "replication": ("false", "off", "no", "0"),
    "sslcertmode": ("allow",),
    "sslsni": ("1",),
}
# Options of libpq that asyncpg lacks altogether, and what to use instead, if there is anything.
_LACKING = {
    "hostaddr": "host",
    "oauth_client_id": "",
    "oauth_client_secret": "",
    "oauth_issuer": "",
    "oauth_scope": "",
    "passfile": "DB_PASS_FILE",
    "require_auth": "",
    "requirepeer": "",
    "scram_client_key": "a password",
    "scram_server_key": "a password",
    "service": "the service's own options",
    "servicefile": "the service's own options",
    "sslcrldir": "sslcrl",
    "sslkeylogfile": "the variable SSLKEYLOGFILE",
}
_PARTS = {"dbname", "host", "password", "port", "user"}
LIBPQ_OPTIONS = _PARTS | _SHARED.keys() | _IGNORED | _FIXED.keys() | _LACKING.keys()


def parse_database_url(
    variable: str, url: str, options: Mapping[str, str], password_file: Path | None
) -> Database:
    """Parse the URL as libpq does; ``options`` override the options in the URL.

    Raises SettingsError, which names ``variable``.
    """
    try:
        given = _read_uri(url)
    except ValueError:
        raise SettingsError(f"{variable}: expected {DATABASE_URL_FORM}") from None
    hosts = given.pop("host", "").split(",")
    ports = given.pop("port", "").split(",")
    user, password = given.pop("user", ""), given.pop("password", "")
    name = given.pop("dbname", "") or user
    # libpq would take the user and the host from the machine; asyncpg looks elsewhere.
    if not user or not all(hosts):
        raise SettingsError(f"{variable}: expected {DATABASE_URL_FORM}")
    if any(host.startswith("@") for host in hosts):
        raise SettingsError(f"{variable}: abstract Unix sockets are not supported")
    kept = {**_select_options(variable, given), **options}
    refuse_conflicts(kept, "DB_SSLMODE" if "sslmode" in options else f"{variable}: sslmode")
    return Database(
        hosts=pair_hosts(hosts, ports, variable),
        name=name,
        user=user,
        password=password,
        password_file=password_file,
        options=tuple(kept.items()),
    )


def _read_uri(url: str) -> dict[str, str]:
    """Return libpq's parameters, the last of each (conninfo_uri_parse in fe-connect.c).

    What is no URI is read as one with an unescaped password. Raises ValueError.
    """
    match = _URI.fullmatch(url)
    if match is not None:
        try:
            return _read_parts(match["password"] or "", match)
        except ValueError:
            pass
    match = _UNESCAPED.fullmatch(url)
    if match is None:
        raise ValueError
    password = match["password"]
    if re.search(r"[@/]", password) or _BAD_ESCAPE.search(password):
        given = _read_parts("", match)
        return {"password": password, **given}
    return _read_parts(password, match)


def _read_parts(password: str, match: re.Match[str]) -> dict[str, str]:
    hosts, ports = [], []
    for text in (match["host"] or "").split(","):
        host, _, port = text[1:].partition("]") if text.startswith("[") else text.partition(":")
        hosts.append(host)
        ports.append(port.removeprefix(":"))
    parts = {
        "user": match["user"],
        "password": password,
        "host": ",".join(hosts),
        "port": ",".join(ports),
        "dbname": match["dbname"],
    }
    given = {name: _decode(text) for name, text in parts.items() if text}
    pairs = (match["query"] or "").split("&")
    for pair in pairs if pairs[-1] else pairs[:-1]:
        name, equals, value = pair.partition("=")
        if not equals or "=" in value:
            raise ValueError
        name, value = _decode(name), _decode(value)
        if (name, value) == ("ssl", "true"):
            name, value = "sslmode", "require"
        elif name == "requiressl":
            name, value = "sslmode", "require" if value.startswith("1") else "prefer"
        given[name] = value
    return given


def _decode(text: str) -> str:
    """Decode percent escapes. As libpq since 17, ignore spaces around. Raises ValueError."""
    decoded = unquote_to_bytes(text.strip(" ")).decode()
    if _BAD_ESCAPE.search(text) or "\0" in decoded:
        raise ValueError
    return decoded


def _select_options(variable: str, given: Mapping[str, str]) -> dict[str, str]:
    """Return the options for both drivers; an empty one is as good as none.

    Raises SettingsError, naming an option that cannot be honoured.
    """
    kept = {}
    for name, value in given.items():
        if name not in LIBPQ_OPTIONS:
            shown = f" {name}" if re.fullmatch(r"[\w.-]+", name) else ""
            raise SettingsError(f"{variable}: unknown option{shown}")
        choices = _SHARED.get(name) or _FIXED.get(name)
        if choices and value not in choices:
            raise SettingsError(f"{variable}: {name}: expected one of {', '.join(choices)}")
        if name in _LACKING and value:
            instead = f"; use {_LACKING[name]}" if _LACKING[name] else ""
            raise SettingsError(f"{variable}: option {name} is not supported{instead}")
        if name in _SHARED and value:
            kept[name] = value
    return kept


def refuse_conflicts(options: Mapping[str, str], named: str) -> None:
    """Raise SettingsError for an sslmode weaker than another option needs, as libpq does.

    ``named`` is where sslmode is set.
    """
    sslmode = options.get("sslmode")
    if options.get("sslrootcert") == "system" and sslmode not in (None, "verify-full"):
        raise SettingsError(f"{named}: expected verify-full, because sslrootcert is system")
    strict = SSLMODES[SSLMODES.index("require") :]
    if options.get("sslnegotiation") == "direct" and sslmode not in strict:
        raise SettingsError(
            f"{named}: expected one of {', '.join(strict)}, because sslnegotiation is direct"
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
    return tuple(zip(hosts, numbers, strict=True))


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
        user=unquote(match["user"] or "", errors="strict"),
        password=unquote(match["password"] or "", errors="strict"),
    )


MAIL_URL = Parser(
    "smtp://, smtp+starttls:// or smtps://, then user:password@host:port", _parse_mail_url
)
