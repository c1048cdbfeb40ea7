"""Settings: read from the environment once, checked whole before anything starts, then frozen."""

import importlib.util
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from email.errors import ObsoleteHeaderDefect
from email.policy import SMTP
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from ssl import create_default_context
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, unquote, urlencode

from marshmallow import EXCLUDE, Schema, ValidationError, fields, validate

SECRET_KEY_MIN_BYTES = 32


class SettingsError(Exception):
    """A variable is missing or wrong; the message names it and says what it expects."""


class Rate(NamedTuple):
    """At most ``requests`` at once, and as many in each ``window_s`` seconds from then on."""

    requests: int
    window_s: int


@dataclass(frozen=True, slots=True)
class Database:
    """Where PostgreSQL is and how to sign in to it, in libpq's terms.

    ``options`` are libpq's query parameters (sslmode, sslrootcert, target_session_attrs, …), which
    asyncpg and psycopg both understand.
    """

    hosts: tuple[tuple[str, int], ...]
    name: str
    user: str
    password: str = field(default="", repr=False)
    password_file: Path | None = None
    options: tuple[tuple[str, str], ...] = ()

    @property
    def address(self) -> str:
        """Host and port of each server, for people: ``db1:5432,db2:5432``."""
        return ",".join(f"{host}:{port}" for host, port in self.hosts)

    def __post_init__(self) -> None:
        options = dict(self.options)
        if options.get("sslmode") == "verify-full" and "sslrootcert" not in options:
            # libpq 16's name for the authorities that the system trusts.
            object.__setattr__(self, "options", (*self.options, ("sslrootcert", "system")))

    def read_password(self) -> str:
        """The password as it is now: its file is read at each connect, so that it may rotate."""
        if self.password_file is None:
            return self.password
        return self.password_file.read_text(encoding="utf-8").rstrip("\r\n")

    def asyncpg_arguments(self) -> dict[str, Any]:
        """Keyword arguments of ``asyncpg.connect`` and ``asyncpg.create_pool``."""
        # asyncpg knows no "system"; a context that trusts the system's authorities is the same.
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
        }

    def libpq_arguments(self) -> dict[str, str]:
        """Keyword arguments of ``psycopg.connect``."""
        return {
            "host": ",".join(host for host, _ in self.hosts),
            "port": ",".join(str(port) for _, port in self.hosts),
            "user": self.user,
            "password": self.read_password(),
            "dbname": self.name,
            **dict(self.options),
        }


@dataclass(frozen=True, slots=True)
class MailServer:
    """The SMTP server that takes our mail, and how to sign in to it where ``user`` is given.

    ``security``: none, starttls (which the server then must offer), or tls from the first byte.
    """

    host: str
    port: int
    security: str
    user: str = ""
    password: str = field(default="", repr=False)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything an operator may set. ``database`` is None until the embedded server runs."""

    host: str = "127.0.0.1"
    port: int = 8080
    workers: int = 1
    metrics_host: str = "127.0.0.1"
    metrics_port: int = 0
    data_dir: Path = Path(".data")
    database: Database | None = None
    secret_key: str = field(default="", repr=False)
    migrate_on_start: bool = False

    db_pool_size: int = 10
    db_pgbouncer: bool = False
    db_connect_timeout_s: float = 10
    db_acquire_timeout_s: float = 0.8
    db_command_timeout_s: float = 3
    db_lock_timeout_s: float = 2
    db_close_timeout_s: float = 5

    request_timeout_s: float = 4.5
    body_timeout_s: float = 10
    body_max_bytes: int = 64 * 1024
    shutdown_delay_s: float = 1

    access_token_ttl_s: int = 15 * 60
    session_ttl_s: int = 30 * 24 * 3600
    session_idle_ttl_s: int = 7 * 24 * 3600
    require_email_verification: bool = False
    token_issuer: str = "shinkei"  # noqa: S105
    password_min_length: int = 15
    password_hash_memory_kib: int = 19 * 1024
    password_hash_iterations: int = 2
    password_hash_workers: int = 0
    password_hash_queue: int = 200

    throttle: bool = True
    throttle_sign_in_per_account: Rate = field(default=Rate(10, 15 * 60))
    throttle_sign_in_per_ip: Rate = field(default=Rate(50, 15 * 60))
    throttle_registration_per_ip: Rate = field(default=Rate(20, 3600))
    throttle_mail_per_account: Rate = field(default=Rate(5, 3600))
    throttle_mail_per_ip: Rate = field(default=Rate(20, 3600))
    deletion_grace_days: int = 30
    audit_retention_days: int = 400

    trusted_proxies: tuple[IPv4Network | IPv6Network, ...] = ()
    public_origin: str = ""
    cors_origins: frozenset[str] = frozenset()
    docs: bool = True

    mail_server: MailServer | None = None
    mail_from: str = "Shinkei <no-reply@localhost>"
    mail_templates_dir: Path | None = None

    log_level: str = "info"
    log_format: str = "auto"
    slow_query_ms: float = 500
    traces: bool = False

    @property
    def db_connections(self) -> int:
        """How many connections all processes may have: their pools, and one each for its probes.

        While workers are replaced, there are twice as many of them.
        """
        processes = self.workers if self.workers == 1 else 2 * self.workers
        return processes * (self.db_pool_size + 1)


def _text(name: str, default: str, expects: str) -> fields.String:
    return fields.String(
        data_key=name, load_default=default, validate=validate.Length(min=1, error=expects)
    )


def _choice(name: str, default: str, *choices: str) -> fields.String:
    expects = "one of " + ", ".join(choices)
    return fields.String(
        data_key=name, load_default=default, validate=validate.OneOf(choices, error=expects)
    )


class _Digits(fields.Integer):
    """Digits alone: int() would take 1_000 and other scripts' digits too."""

    def _validated(self, value: Any) -> int:
        if isinstance(value, str) and not re.fullmatch(r"[0-9]+", value):
            raise self.make_error("invalid", input=value)
        return super()._validated(value)


def _integer(name: str, default: int, low: int, high: int) -> fields.Integer:
    expects = f"a whole number from {low} to {high}"
    return _Digits(
        data_key=name,
        load_default=default,
        validate=validate.Range(low, high, error=expects),
        error_messages={"invalid": expects},
    )


def _seconds(name: str, default: float, low: float, high: float) -> fields.Float:
    expects = f"a number of seconds from {low:g} to {high:g}"
    return fields.Float(
        data_key=name,
        load_default=default,
        validate=validate.Range(low, high, error=expects),
        error_messages={"invalid": expects, "special": expects},
    )


def _flag(name: str, default: bool | None) -> fields.Boolean:
    return fields.Boolean(
        data_key=name,
        load_default=default,
        allow_none=default is None,
        truthy={"true", "1"},
        falsy={"false", "0"},
        error_messages={"invalid": "true or false"},
    )


_SSLMODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")


_RATE = re.compile(r"([1-9][0-9]{0,4})/([1-9][0-9]{0,2})?([smhd])")
_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


class _RateField(fields.Field[Rate]):
    """``10/15m``: 10 requests in 15 minutes; s, m, h or d, and a number before it unless 1."""

    def _deserialize(self, value: Any, attr: Any, data: Any, **kwargs: Any) -> Rate:
        match = _RATE.fullmatch(value)
        if match is None:
            raise ValidationError("a number of requests in a time, such as 10/15m")
        requests, count, unit = match.groups()
        return Rate(int(requests), int(count or 1) * _UNITS_S[unit])


def _rate(name: str, default: Rate) -> _RateField:
    return _RateField(data_key=name, load_default=default)


class _EnvironmentSchema(Schema):
    """One field a variable. README's table lists the same names; a test compares the two."""

    class Meta:
        unknown = EXCLUDE

    host = _text("HOST", Settings.host, "an address to listen on, such as 127.0.0.1 or 0.0.0.0")
    port = _integer("PORT", Settings.port, 0, 65535)
    workers = _integer("WORKERS", Settings.workers, 1, 256)
    metrics_host = _text("METRICS_HOST", Settings.metrics_host, "an address such as 127.0.0.1")
    metrics_port = _integer("METRICS_PORT", Settings.metrics_port, 0, 65535)
    data_dir = _text("DATA_DIR", "./.data", "the path of a directory")
    secret_key = fields.String(data_key="SECRET_KEY", load_default="")
    migrate_on_start = _flag("MIGRATE_ON_START", None)

    database_url = fields.String(data_key="DATABASE_URL", load_default="")
    db_host = fields.String(data_key="DB_HOST", load_default="")
    db_port = fields.String(data_key="DB_PORT", load_default="")
    db_name = fields.String(data_key="DB_NAME", load_default="")
    db_user = fields.String(data_key="DB_USER", load_default="")
    db_pass = fields.String(data_key="DB_PASS", load_default="")
    db_pass_file = fields.String(data_key="DB_PASS_FILE", load_default="")
    db_sslmode = _choice("DB_SSLMODE", "", "", *_SSLMODES)
    db_sslrootcert = fields.String(data_key="DB_SSLROOTCERT", load_default="")
    db_target_session_attrs = _choice(
        "DB_TARGET_SESSION_ATTRS", "", "", "any", "read-write", "primary"
    )

    db_pool_size = _integer("DB_POOL_SIZE", Settings.db_pool_size, 1, 1000)
    db_pgbouncer = _flag("DB_PGBOUNCER", False)
    db_connect_timeout_s = _seconds("DB_CONNECT_TIMEOUT_S", Settings.db_connect_timeout_s, 0, 600)
    db_acquire_timeout_s = _seconds("DB_ACQUIRE_TIMEOUT_S", Settings.db_acquire_timeout_s, 0.01, 60)
    db_command_timeout_s = _seconds(
        "DB_COMMAND_TIMEOUT_S", Settings.db_command_timeout_s, 0.01, 600
    )
    db_lock_timeout_s = _seconds("DB_LOCK_TIMEOUT_S", Settings.db_lock_timeout_s, 0.01, 600)
    db_close_timeout_s = _seconds("DB_CLOSE_TIMEOUT_S", Settings.db_close_timeout_s, 0.01, 60)

    request_timeout_s = _seconds("REQUEST_TIMEOUT_S", Settings.request_timeout_s, 0.1, 600)
    body_timeout_s = _seconds("BODY_TIMEOUT_S", Settings.body_timeout_s, 0.1, 600)
    body_max_bytes = _integer("BODY_MAX_BYTES", Settings.body_max_bytes, 1024, 16 * 1024 * 1024)
    shutdown_delay_s = _seconds("SHUTDOWN_DELAY_S", Settings.shutdown_delay_s, 0, 300)

    access_token_ttl_s = _integer("ACCESS_TOKEN_TTL_S", Settings.access_token_ttl_s, 10, 86_400)
    session_ttl_s = _integer("SESSION_TTL_S", Settings.session_ttl_s, 60, 10 * 365 * 86_400)
    session_idle_ttl_s = _integer(
        "SESSION_IDLE_TTL_S", Settings.session_idle_ttl_s, 60, 10 * 365 * 86_400
    )
    require_email_verification = _flag("REQUIRE_EMAIL_VERIFICATION", False)
    token_issuer = _text("TOKEN_ISSUER", Settings.token_issuer, "the iss claim of access tokens")
    password_min_length = _integer("PASSWORD_MIN_LENGTH", Settings.password_min_length, 8, 128)
    password_hash_memory_kib = _integer(
        "PASSWORD_HASH_MEMORY_KIB", Settings.password_hash_memory_kib, 8, 4 * 1024 * 1024
    )
    password_hash_iterations = _integer(
        "PASSWORD_HASH_ITERATIONS", Settings.password_hash_iterations, 1, 100
    )
    password_hash_workers = _integer("PASSWORD_HASH_WORKERS", 0, 0, 256)
    password_hash_queue = _integer("PASSWORD_HASH_QUEUE", Settings.password_hash_queue, 1, 100_000)

    throttle = _flag("THROTTLE", True)
    throttle_sign_in_per_account = _rate(
        "THROTTLE_SIGN_IN_PER_ACCOUNT", Settings.throttle_sign_in_per_account
    )
    throttle_sign_in_per_ip = _rate("THROTTLE_SIGN_IN_PER_IP", Settings.throttle_sign_in_per_ip)
    throttle_registration_per_ip = _rate(
        "THROTTLE_REGISTRATION_PER_IP", Settings.throttle_registration_per_ip
    )
    throttle_mail_per_account = _rate(
        "THROTTLE_MAIL_PER_ACCOUNT", Settings.throttle_mail_per_account
    )
    throttle_mail_per_ip = _rate("THROTTLE_MAIL_PER_IP", Settings.throttle_mail_per_ip)
    deletion_grace_days = _integer("DELETION_GRACE_DAYS", Settings.deletion_grace_days, 0, 3650)
    audit_retention_days = _integer("AUDIT_RETENTION_DAYS", Settings.audit_retention_days, 0, 36500)

    trusted_proxies = fields.String(data_key="TRUSTED_PROXIES", load_default="")
    public_origin = fields.String(
        data_key="PUBLIC_ORIGIN",
        load_default="",
        validate=validate.Regexp(
            r"https?://[A-Za-z0-9.-]+(:[0-9]+)?$", error="an origin such as https://app.example"
        ),
    )

    cors_origins = fields.String(data_key="CORS_ORIGINS", load_default="")
    docs = _flag("DOCS", True)

    mail_url = fields.String(data_key="MAIL_URL", load_default="")
    mail_from = fields.String(data_key="MAIL_FROM", load_default=Settings.mail_from)
    mail_templates_dir = fields.String(data_key="MAIL_TEMPLATES_DIR", load_default="")

    log_level = _choice("LOG_LEVEL", "info", "debug", "info", "warning", "error")
    log_format = _choice("LOG_FORMAT", "auto", "auto", "json", "console")
    slow_query_ms = _integer("SLOW_QUERY_MS", 500, 0, 600_000)
    traces = _flag("TRACES", False)


VARIABLES: tuple[str, ...] = tuple(
    str(field.data_key) for field in _EnvironmentSchema._declared_fields.values()
)


def load_settings(environ: Mapping[str, str]) -> Settings:
    """Read the settings from ``environ``; an empty variable counts as one not set.

    Raises SettingsError for the first variable that is wrong, without showing its value.
    """
    given = {name: environ[name] for name in VARIABLES if environ.get(name)}
    for name, value in given.items():
        if not value.isascii() and any("\ud800" <= char <= "\udfff" for char in value):
            raise SettingsError(f"{name}: expected text in UTF-8")
    try:
        values: dict[str, Any] = _EnvironmentSchema().load(given)
    except ValidationError as error:
        name, messages = next(iter(error.messages_dict.items()))
        raise SettingsError(f"{name}: expected {messages[0]}") from None

    values["trusted_proxies"] = _read_networks(values["trusted_proxies"])
    values["cors_origins"] = _read_origins(values["cors_origins"])
    values["public_origin"] = values["public_origin"] or (
        f"http://{values['host']}:{values['port']}"
    )
    values["mail_server"] = _parse_mail_url(values.pop("mail_url"))
    _check_mail_from(values["mail_from"])
    values["mail_templates_dir"] = _read_directory(values["mail_templates_dir"])
    if values["traces"]:
        _check_traces(environ)
    parts = {name: values.pop(name) for name in _DATABASE_PARTS}
    database = _read_database(parts)
    secret_key = values["secret_key"]
    if (database is not None or secret_key) and len(secret_key.encode()) < SECRET_KEY_MIN_BYTES:
        expects = f"SECRET_KEY: expected at least {SECRET_KEY_MIN_BYTES} bytes of random text"
        raise SettingsError(f"{expects}, such as the output of: openssl rand -base64 48")
    if values["migrate_on_start"] is None:
        values["migrate_on_start"] = database is None
    try:
        values["data_dir"] = Path(values["data_dir"]).expanduser().absolute()
    except RuntimeError:
        raise SettingsError("DATA_DIR: expected the path of a directory") from None
    return Settings(**values, database=database)


_DATABASE_PARTS = (
    *("database_url", "db_host", "db_port", "db_name", "db_user", "db_pass", "db_pass_file"),
    *("db_sslmode", "db_sslrootcert", "db_target_session_attrs"),
)


def _read_networks(text: str) -> tuple[IPv4Network | IPv6Network, ...]:
    try:
        return tuple(ip_network(part.strip()) for part in text.split(",") if part.strip())
    except ValueError:
        raise SettingsError(
            "TRUSTED_PROXIES: expected addresses or networks with commas, such as 10.0.0.0/8"
        ) from None


# As a browser writes it (RFC 6454 §6.2): one that is written otherwise would never be met.
_ORIGIN = re.compile(
    r"(?P<scheme>[a-z][a-z0-9+.-]*)://([a-z0-9._-]+|\[[0-9a-f:.]+\])(:(?P<port>[1-9][0-9]{0,4}))?"
)
_DEFAULT_PORTS = {("http", "80"), ("https", "443")}


def _read_origins(text: str) -> frozenset[str]:
    origins = frozenset(part.strip() for part in text.split(",") if part.strip())
    for match in map(_ORIGIN.fullmatch, origins):
        if match is None or (match["scheme"], match["port"]) in _DEFAULT_PORTS:
            raise SettingsError(
                "CORS_ORIGINS: expected origins with commas, as browsers send them: in lower case,"
                " without a path or a default port, such as https://app.example"
            )
    return origins


# The password runs to the last "@" here too.
_MAIL_URL = re.compile(
    r"(?P<scheme>smtp|smtp\+starttls|smtps)://(?:(?P<user>[^:]*)(?::(?P<password>.*))?@)?"
    r"(?P<host>\[[0-9A-Fa-f:.%]+\]|[^:@/?#\[\]\s]+)(?::(?P<port>\d{1,5}))?/?",
    re.DOTALL,
)
_MAIL_SCHEMES = {"smtp": ("none", 25), "smtp+starttls": ("starttls", 587), "smtps": ("tls", 465)}


def _parse_mail_url(url: str) -> MailServer | None:
    if not url:
        return None
    match = _MAIL_URL.fullmatch(url)
    security, usual_port = _MAIL_SCHEMES[match["scheme"]] if match else ("", 0)
    port = int(match["port"] or usual_port) if match else 0
    if match is None or not 0 < port < 65536:
        raise SettingsError(
            "MAIL_URL: expected smtp://, smtp+starttls:// or smtps://, then user:password@host:port"
        )
    return MailServer(
        host=match["host"].strip("[]"),
        port=port,
        security=security,
        user=unquote(match["user"] or ""),
        password=unquote(match["password"] or ""),
    )


def _check_mail_from(text: str) -> None:
    """Refuse what is not one address, in ASCII, with or without a name before it (RFC 5322)."""
    header = SMTP.header_factory("From", text)
    wrong = [one for one in header.defects if not isinstance(one, ObsoleteHeaderDefect)]
    if wrong or len(header.addresses) != 1 or not header.addresses[0].addr_spec.isascii():
        raise SettingsError("MAIL_FROM: expected an address such as Name <no-reply@app.example>")


def _check_traces(environ: Mapping[str, str]) -> None:
    """Refuse what would only be found out by the traces that never arrive."""
    try:
        installed = importlib.util.find_spec("opentelemetry.exporter.otlp.proto.http")
    except ModuleNotFoundError:
        installed = None
    if installed is None:
        raise SettingsError("TRACES: expected the extra to be installed: pip install shinkei[otel]")
    for name in ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"):
        if environ.get(name, "http/protobuf") not in ("", "http/protobuf"):
            raise SettingsError(f"{name}: expected http/protobuf, which collectors take at 4318")


def _read_directory(text: str) -> Path | None:
    path = Path(text).expanduser().absolute() if text else None
    if path is not None and not path.is_dir():
        raise SettingsError("MAIL_TEMPLATES_DIR: expected the path of a directory")
    return path


def _read_database(parts: Mapping[str, str]) -> Database | None:
    """The database that the variables name, or None where they name none."""
    options = {
        option: parts[f"db_{option}"]
        for option in ("sslmode", "sslrootcert", "target_session_attrs")
        if parts[f"db_{option}"]
    }
    password_file = Path(parts["db_pass_file"]) if parts["db_pass_file"] else None
    try:
        if password_file is not None:
            password_file.read_text(encoding="utf-8")
    except (OSError, ValueError):
        raise SettingsError("DB_PASS_FILE: expected the path of a file that can be read") from None
    if parts["database_url"]:
        return _parse_database_url(parts["database_url"], options, password_file)
    if not any(parts[name] for name in ("db_host", "db_port", "db_name", "db_user", "db_pass")):
        return None
    for name, expects in (
        ("db_host", "the name or address of the PostgreSQL server"),
        ("db_name", "the name of the database"),
        ("db_user", "the name of the database's user"),
    ):
        if not parts[name]:
            raise SettingsError(f"{name.upper()}: expected {expects}, as other DB_ parts are set")
    return Database(
        hosts=_pair_hosts(parts["db_host"].split(","), parts["db_port"].split(","), "DB_PORT"),
        name=parts["db_name"],
        user=parts["db_user"],
        password=parts["db_pass"],
        password_file=password_file,
        options=tuple(options.items()),
    )


# The password runs to the last "@", so that one with "@", "/", "?", "#" or ":" works unescaped too;
# a well-formed URL, where these are escaped, is read the same way.
_DATABASE_URL = re.compile(
    r"postgres(?:ql)?://(?:(?P<user>[^:@]*)(?::(?P<password>.*))?@)?"
    r"(?P<hosts>[^/?@]*)(?:/(?P<name>[^?@]*))?(?:\?(?P<query>[^@]*))?",
    re.DOTALL,
)
_HOST_AND_PORT = re.compile(r"(?P<host>\[[0-9A-Fa-f:.%]+\]|[^:\[\]]*)(?::(?P<port>\d*))?")


def _parse_database_url(
    url: str, options: Mapping[str, str], password_file: Path | None
) -> Database:
    expects = SettingsError(
        "DATABASE_URL: expected postgresql://user:password@host:port/name (libpq's connection URI)"
    )
    match = _DATABASE_URL.fullmatch(url)
    if match is None:
        raise expects
    query = dict(parse_qsl(match["query"] or "", keep_blank_values=True))
    hosts, ports = [], []
    for text in match["hosts"].split(","):
        pair = _HOST_AND_PORT.fullmatch(text)
        if pair is None:
            raise expects
        hosts.append(unquote(pair["host"]).strip("[]"))
        ports.append(pair["port"] or "")
    query_host, query_port = query.pop("host", ""), query.pop("port", "")
    if query_host or query_port:
        hosts = query_host.split(",") if query_host else hosts
        ports = query_port.split(",")
    query_user, query_password = query.pop("user", ""), query.pop("password", "")
    query_name = query.pop("dbname", "")
    user = query_user or unquote(match["user"] or "")
    name = query_name or unquote(match["name"] or "") or user
    if not user or not any(hosts):
        raise expects
    kept = {name: value for name, value in query.items() if name not in _LIBPQ_ALONE}
    unknown = set(kept) - _OPTIONS
    if unknown:
        raise SettingsError(f"DATABASE_URL: unknown option {min(unknown)}")
    if kept.get("sslmode", "prefer") not in _SSLMODES:
        raise SettingsError("DATABASE_URL: sslmode: expected one of " + ", ".join(_SSLMODES))
    return Database(
        hosts=_pair_hosts(hosts, ports, "DATABASE_URL"),
        name=name,
        user=user,
        password=query_password or unquote(match["password"] or ""),
        password_file=password_file,
        options=tuple({**kept, **options}.items()),
    )


# Options of a connection URI that asyncpg and libpq both take.
_OPTIONS = {
    "application_name",
    "sslcert",
    "sslkey",
    "sslmode",
    "sslrootcert",
    "target_session_attrs",
}
# Those that hosted databases put into their URIs, and that are libpq's alone: asyncpg has its own
# deadlines and keep-alive, and binds channels by itself.
_LIBPQ_ALONE = {
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


def _pair_hosts(hosts: list[str], ports: list[str], variable: str) -> tuple[tuple[str, int], ...]:
    """Each host with its port; one port serves every host, as in libpq; none is 5432."""
    if len(ports) == 1:
        ports = ports * len(hosts)
    if len(ports) != len(hosts):
        raise SettingsError(f"{variable}: expected one port, or one for each host")
    numbers = [int(port or 5432) if port.isdecimal() or not port else 0 for port in ports]
    if not all(0 < number < 65536 for number in numbers):
        raise SettingsError(f"{variable}: expected a port from 1 to 65535")
    return tuple(zip((host.strip() for host in hosts), numbers, strict=True))
