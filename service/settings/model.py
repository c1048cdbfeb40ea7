"""Settings, and the declarations of the variables that set them."""

from dataclasses import dataclass, fields
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Any

from service.settings.connections import Database, MailServer
from service.settings.mail import EHLO_NAME, SENDER
from service.settings.urls import DATABASE_URL_FORM, MAIL_URL, SSLMODES
from service.settings.variables import (
    DIRECTORY,
    DOMAIN,
    HEADERS,
    NETWORKS,
    ORIGINS,
    PASSKEY_ORIGINS,
    PATH,
    PUBLIC_ORIGIN,
    RATE,
    READABLE_FILE,
    SECRET_KEY,
    Rate,
    Variable,
    choice,
    flag,
    header_name,
    integer,
    seconds,
    text,
    variable,
)

# In the order of help and documents.
GROUPS = (
    SERVER := "Server",
    DATABASE := "Database",
    REQUESTS := "Requests and browsers",
    MAIL := "Mail",
    ACCOUNTS := "Accounts and passwords",
    WORLDS := "Worlds",
    LIMITS := "Rate limits",
    LOGS := "Logs and traces",
)

TEN_YEARS_S = 10 * 365 * 86_400


# fmt: off
@dataclass(frozen=True, kw_only=True)
class Settings:
    """The configuration of the service. ``database`` is None until the embedded server runs.

    A field without a variable has one right value; tests set others.
    """

    host: str = variable("HOST", SERVER, "127.0.0.1",
        text("an IP address or a host name, such as 127.0.0.1 or 0.0.0.0"),
        "The interface to listen on; `0.0.0.0` means every IPv4 interface, `::` every interface.")
    port: int = variable("PORT", SERVER, 8080, integer(0, 65535),
        "The port to listen on; `0` picks a free one, which commands that email or print links do"
        " not know: set `PUBLIC_ORIGIN` then.")
    workers: int = variable("WORKERS", SERVER, 1, integer(1, 256),
        "Processes that serve requests. `shinkei serve --workers` takes precedence.")
    metrics_host: str = variable("METRICS_HOST", SERVER, "127.0.0.1",
        text("an IP address or a host name, such as 127.0.0.1"),
        "The interface that serves metrics.")
    metrics_port: int = variable("METRICS_PORT", SERVER, 0, integer(0, 65535),
        "The port that Prometheus scrapes; `0` turns metrics off.")
    data_dir: Path = variable("DATA_DIR", SERVER, Path(".data"), PATH,
        "Holds the embedded PostgreSQL's data and log, the generated secrets, and emails if"
        " `MAIL_URL` is not set. Other users have no access to what is in it; the directory itself"
        " keeps its permissions if it existed before the first start.",
        shown_default="`./.data`")
    secret_key: str = variable("SECRET_KEY", SERVER, "", SECRET_KEY,
        "Encrypts the signing keys in the database. Required with an external database; all"
        " replicas must use the same one. docs/deployment.md says how to replace it.",
        shown_default="generated and kept in `DATA_DIR`", secret=True)
    secret_key_previous: str = variable("SECRET_KEY_PREVIOUS", SERVER, "", SECRET_KEY,
        "Another key that also opens what the database holds sealed, while `SECRET_KEY` is being"
        " replaced (docs/deployment.md). Needs `SECRET_KEY`.",
        shown_default="not set", secret=True)
    migrate_on_start: bool = variable("MIGRATE_ON_START", SERVER, False, flag(),
        "Apply pending migrations before serving.",
        shown_default="`true` with the embedded PostgreSQL, otherwise `false`")
    shutdown_delay_s: float = variable("SHUTDOWN_DELAY_S", SERVER, 1, seconds(0, 300),
        "How long to keep serving after SIGTERM, while `/health/ready` already fails.")

    database: Database | None = None
    # Past a pooler, for migrations.
    direct_database: Database | None = None
    # A standby, for lists and exports.
    replica_database: Database | None = None
    db_pool_size: int = variable("DB_POOL_SIZE", DATABASE, 10, integer(1, 1000, "connections"),
        "Connections per process, all opened at startup and kept open. With two or more, at least a"
        " fifth of them is reserved for reads. As many to the replica, opened when needed.")
    db_connect_timeout_s: float = variable("DB_CONNECT_TIMEOUT_S", DATABASE, 10, seconds(0, 600),
        "How long to wait for the database at startup.")
    db_command_timeout_s: float = variable("DB_COMMAND_TIMEOUT_S", DATABASE, 3, seconds(0.01, 600),
        "Maximum duration of a statement. Keep it below `REQUEST_TIMEOUT_S`.")
    db_acquire_timeout_s: float = variable("DB_ACQUIRE_TIMEOUT_S", DATABASE, 0.8,
        seconds(0.01, 60),
        "How long a request waits for a connection before it gets a 503. Keep the sum of this and"
        " `DB_COMMAND_TIMEOUT_S` below `REQUEST_TIMEOUT_S`.")
    db_lock_timeout_s: float = variable("DB_LOCK_TIMEOUT_S", DATABASE, 2, seconds(0.01, 600),
        "How long a statement waits for a lock. Keep it below `DB_COMMAND_TIMEOUT_S`, so that the"
        " log shows what it waited for.")
    # How long shutdown waits, after the requests, for background tasks and the pool together.
    db_close_timeout_s: float = 3

    request_timeout_s: float = variable("REQUEST_TIMEOUT_S", REQUESTS, 4.5, seconds(0.1, 600),
        "Maximum time from a request's arrival to its response, after which it gets a 503.")
    body_timeout_s: float = variable("BODY_TIMEOUT_S", REQUESTS, 10, seconds(0.1, 600),
        "How long a client may take to send the body before it gets a 408.")
    # How long a connection may be idle, and how long a client may take to send a request's headers.
    keepalive_timeout_s: float = 15
    # How long a client may read nothing of a response before its connection is closed.
    write_timeout_s: float = 15
    # Connections of a process; fewer if it may not open so many files.
    connections_max: int = 5000
    trusted_proxies: tuple[IPv4Network | IPv6Network, ...] = variable(
        "TRUSTED_PROXIES", REQUESTS, (), NETWORKS,
        "Proxies that tell the client's IP in `TRUSTED_PROXY_HEADER`. Clients behind an unlisted"
        " proxy share one rate limit.")
    trusted_proxy_header: str = variable("TRUSTED_PROXY_HEADER", REQUESTS, "X-Forwarded-For",
        header_name("X-Forwarded-For", "Forwarded"),
        "The one header that these proxies set or append to. The other is ignored, because they"
        " pass it on as the client sent it.")
    public_origin: str = variable("PUBLIC_ORIGIN", REQUESTS, "", PUBLIC_ORIGIN,
        "The origin of your front end; links in emails begin with it. If it is `https://`,"
        " responses carry HSTS. An IPv6 address is in brackets. Required if `MAIL_URL` is set and"
        " `HOST` means every interface.",
        shown_default="`http://HOST:PORT`, with `localhost` if `HOST` is `127.0.0.1` or means every"
        " interface")
    cors_origins: frozenset[str] = variable("CORS_ORIGINS", REQUESTS, frozenset(), ORIGINS,
        "Origins whose pages may call the API from a browser.")
    cors_headers: frozenset[str] = variable("CORS_HEADERS", REQUESTS, frozenset(), HEADERS,
        "Request headers that these pages may send besides those of the API, `baggage`,"
        " `sentry-trace`, `traceparent` and `tracestate`.")
    docs: bool = variable("DOCS", REQUESTS, True, flag(),
        "Serve the pages at `/` and `/docs`. `/openapi.json` is always served.")

    mail_server: MailServer | None = variable("MAIL_URL", MAIL, None, MAIL_URL,
        "The mail server. Its certificate is verified with the system's authorities, or those in"
        " `SSL_CERT_FILE`. If not set, emails are written to `DATA_DIR/mail` and their links to"
        " the log.")
    mail_from: str = variable("MAIL_FROM", MAIL, "Shinkei <no-reply@localhost>", SENDER,
        "The sender of emails.")
    mail_ehlo: str = variable("MAIL_EHLO", MAIL, "", EHLO_NAME,
        "The name by which the service greets the mail server. Some servers only accept a name that"
        " DNS knows.", shown_default="the machine's full name, or the IP it connects from")
    mail_templates_dir: Path | None = variable("MAIL_TEMPLATES_DIR", MAIL, None, DIRECTORY,
        "Your own templates: `<language>/<name>.subject`, `.txt` and `.html` replace those in"
        " `service/mail/templates` file by file, or add a language.")

    require_email_verification: bool = variable("REQUIRE_EMAIL_VERIFICATION", ACCOUNTS, False,
        flag(), "Refuse sign-in until the link in the verification email has been followed."
        " Registration then always responds with 202.")
    require_second_factor: str = variable("REQUIRE_SECOND_FACTOR", ACCOUNTS, "none",
        choice("none", "admins", "all"), "Which accounts must have a second factor. Without one,"
        " their sessions may do nothing but set one up.")
    access_token_ttl_s: int = variable("ACCESS_TOKEN_TTL_S", ACCOUNTS, 15 * 60,
        integer(10, 86_400, "seconds"), "How long an access token is valid.")
    session_ttl_s: int = variable("SESSION_TTL_S", ACCOUNTS, 30 * 86_400,
        integer(60, TEN_YEARS_S, "seconds"), "How long a session lasts at most.")
    session_idle_ttl_s: int = variable("SESSION_IDLE_TTL_S", ACCOUNTS, 7 * 86_400,
        integer(60, TEN_YEARS_S, "seconds"), "How long a session lasts without a refresh.")
    sessions_per_account: int = variable("SESSIONS_PER_ACCOUNT", ACCOUNTS, 100,
        integer(1, 10_000, "sessions"),
        "Maximum sessions of an account; a sign-in beyond it ends the oldest.")
    service_name: str = variable("SERVICE_NAME", ACCOUNTS, "Shinkei", text("any text"),
        "The name under which an app lists its one-time codes.")
    token_issuer: str = variable("TOKEN_ISSUER", ACCOUNTS, "shinkei",
        text("any text"), "The `iss` claim of access tokens.")
    token_audience: str = variable("TOKEN_AUDIENCE", ACCOUNTS, "shinkei",
        text("any text"), "The `aud` claim of access tokens. A token for another audience is"
        " refused, so changing it makes clients refresh.", shown_default="`TOKEN_ISSUER`")
    password_min_length: int = variable("PASSWORD_MIN_LENGTH", ACCOUNTS, 15,
        integer(8, 128, "characters"),
        "Minimum length. NIST SP 800-63B-4 requires 15 if the password is the only factor.")
    password_hash_memory_kib: int = variable("PASSWORD_HASH_MEMORY_KIB", ACCOUNTS, 19 * 1024,
        integer(8, 4 * 1024 * 1024, "KiB"),
        "Memory of each argon2id hash; the default is OWASP's. `shinkei calibrate-passwords`"
        " measures what this machine can do.")
    password_hash_iterations: int = variable("PASSWORD_HASH_ITERATIONS", ACCOUNTS, 2,
        integer(1, 100), "Passes of each argon2id hash; the default is OWASP's.")
    password_hash_workers: int = variable("PASSWORD_HASH_WORKERS", ACCOUNTS, 0, integer(0, 256),
        "Threads per process that hash passwords; `0` divides the cores among the processes. Set"
        " it if a container may use fewer cores than its machine has.")
    # How many hashes may wait before a sign-in gets a 503.
    password_hash_queue: int = 200
    rp_id: str = variable("RP_ID", ACCOUNTS, "", DOMAIN,
        "The domain that passkeys belong to: the host of the pages that use them, or a domain above"
        " it. Passkeys of another one no longer work, so choose it once.",
        shown_default="the host of `PUBLIC_ORIGIN`; no passkeys if that is an IP address or not"
        " `https://`, unless it is `localhost`")
    rp_origins: frozenset[str] = variable("RP_ORIGINS", ACCOUNTS, frozenset(), PASSKEY_ORIGINS,
        "Origins whose pages may use passkeys. Browsers learn of those outside `RP_ID` at"
        " `https://RP_ID/.well-known/webauthn`, which this service serves; they take at least five"
        " domains there.", shown_default="`PUBLIC_ORIGIN`")
    deletion_grace_days: int = variable("DELETION_GRACE_DAYS", ACCOUNTS, 30,
        integer(0, 3650, "days"),
        "How long after a deletion request the account is erased. Until then the owner's sign-in"
        " cancels their own request, and an administrator can cancel any.")
    audit_retention_days: int = variable("AUDIT_RETENTION_DAYS", ACCOUNTS, 400,
        integer(0, 36_500, "days"),
        "How long audit events are kept, in whole months; `0` keeps them forever.")

    worlds_per_account: int = variable("WORLDS_PER_ACCOUNT", WORLDS, 100,
        integer(0, 10_000, "worlds"), "Maximum worlds of an account.")
    stories_per_account: int = variable("STORIES_PER_ACCOUNT", WORLDS, 1_000,
        integer(0, 1_000_000, "stories"), "Maximum stories of an account, in all of its worlds.")
    beats_per_account: int = variable("BEATS_PER_ACCOUNT", WORLDS, 100_000,
        integer(0, 10_000_000, "beats"), "Maximum beats of an account, in all of its stories.")

    world_import_max_bytes: int = variable("WORLD_IMPORT_MAX_BYTES", WORLDS, 64 * 1024 * 1024,
        integer(1024, 2**40, "bytes"), "Maximum size of an imported world, after decompression."
        " Uploads and exports of more than 1 MiB are temporary files in the system's directory for"
        " these, such as `/tmp`.")

    throttle: bool = variable("THROTTLE", LIMITS, True, flag(),
        "Set to `false` to turn off all rate limits, for load tests.")
    throttle_sign_in_per_account: Rate = variable(
        "THROTTLE_SIGN_IN_PER_ACCOUNT", LIMITS, Rate(10, 15 * 60), RATE,
        "Wrong passwords for one account. The default allows ten at once, then one every 90"
        " seconds. Each network the account has signed in from has its own counter of this size.")
    throttle_sign_in_per_ip: Rate = variable(
        "THROTTLE_SIGN_IN_PER_IP", LIMITS, Rate(50, 15 * 60), RATE,
        "Wrong passwords from one client (an IPv4 address or an IPv6 /64) for any account, and"
        " separately the links that it inspects.")
    throttle_all_sign_ins_per_ip: Rate = variable(
        "THROTTLE_ALL_SIGN_INS_PER_IP", LIMITS, Rate(1000, 3600), RATE,
        "Passwords from one client, right or wrong. Raise it if many people sign in through one"
        " IP, such as a front end's server.")
    throttle_registration_per_ip: Rate = variable(
        "THROTTLE_REGISTRATION_PER_IP", LIMITS, Rate(20, 3600), RATE,
        "Registrations from one client.")
    throttle_mail_per_account: Rate = variable(
        "THROTTLE_MAIL_PER_ACCOUNT", LIMITS, Rate(5, 3600), RATE,
        "Password resets for one account and, counted separately, verification emails.")
    throttle_factors_per_account: Rate = variable(
        "THROTTLE_FACTORS_PER_ACCOUNT", LIMITS, Rate(30, 3600), RATE,
        "Second factors added and removed, and recovery codes made, for one account. Each sends an"
        " email.")
    throttle_factors_per_ip: Rate = variable(
        "THROTTLE_FACTORS_PER_IP", LIMITS, Rate(100, 3600), RATE, "The same, from one client.")
    throttle_mail_per_ip: Rate = variable("THROTTLE_MAIL_PER_IP", LIMITS, Rate(20, 3600), RATE,
        "The same, requested by one client.")

    # The periodic jobs first run at different times within this one.
    jobs_start_within_s: float = 10

    log_level: str = variable("LOG_LEVEL", LOGS, "info",
        choice("debug", "info", "warning", "error"), "The lowest severity that is logged.")
    log_format: str = variable("LOG_FORMAT", LOGS, "auto", choice("auto", "json", "console"),
        "`auto` is `console` if stderr is a terminal, and `json` otherwise.")
    slow_query_ms: float = variable("SLOW_QUERY_MS", LOGS, 500, integer(0, 600_000, "milliseconds"),
        "Log statements that take at least this long, without their parameters; `0` logs none.")
    traces: bool = variable("TRACES", LOGS, False, flag(),
        "Send spans of requests and statements to the collector that OpenTelemetry's variables"
        " configure (docs/logs.md). Needs the extra `otel`.")

    @property
    def secret_keys(self) -> tuple[str, ...]:
        """The keys that open what is sealed. The first one also seals."""
        previous = (self.secret_key_previous,) if self.secret_key_previous else ()
        return (self.secret_key, *previous)

    @property
    def db_connections(self) -> int:
        """How many connections all processes may open: their pools, plus one each for probes.

        Counts workers twice, because old and new ones overlap while they are replaced.
        """
        processes = self.workers if self.workers == 1 else 2 * self.workers
        return processes * (self.db_pool_size + 1)


# These variables form ``Settings.database``.
DATABASE_VARIABLES: tuple[Variable[Any], ...] = (
    Variable("DATABASE_URL", DATABASE, None, text(DATABASE_URL_FORM),
        "libpq's connection URI, with several hosts, `sslmode`, `options` and so on"
        " (docs/deployment.md lists them). In the password, write `@` as `%40`, `/` as `%2F` and"
        " `%` as `%25`. Takes precedence over the parts below; without either, an embedded"
        " PostgreSQL is started."),
    Variable("DATABASE_DIRECT_URL", DATABASE, None, text(DATABASE_URL_FORM),
        "The same database, past a pooler. `shinkei migrate` and `MIGRATE_ON_START` use it."),
    Variable("DATABASE_REPLICA_URL", DATABASE, None, text(DATABASE_URL_FORM),
        "A standby of the same database, for lists and exports (docs/deployment.md). They are read"
        " there if it has all that was written before the request, and otherwise on the primary."),
    Variable("DB_HOST", DATABASE, None, text("the name or IP address of the PostgreSQL server"),
        "The server, or several separated by commas."),
    Variable("DB_PORT", DATABASE, None, text("a port from 1 to 65535, or one for each host"),
        "Its port.", shown_default="`5432`"),
    Variable("DB_NAME", DATABASE, None, text("the name of the database"), "The database."),
    Variable("DB_USER", DATABASE, None, text("the name of the database's user"), "The role."),
    Variable("DB_PASS", DATABASE, None, text("a password"), "The role's password."),
    Variable("DB_PASS_FILE", DATABASE, None, READABLE_FILE,
        "A file with the password of all three URLs. It is read for each new connection, so that it"
        " can rotate."),
    Variable("DB_SSLMODE", DATABASE, None, choice(*SSLMODES),
        "Whether to use TLS and what to verify, as in libpq, for all three URLs. `verify-full`"
        " trusts the system's authorities unless `DB_SSLROOTCERT` is set.",
        shown_default="`prefer`"),
    Variable("DB_SSLROOTCERT", DATABASE, None, text("the path of a certificate"),
        "The certificate of the authority to trust."),
    Variable("DB_TARGET_SESSION_ATTRS", DATABASE, None, choice("any", "read-write", "primary"),
        "Which of several hosts of the primary to use: `read-write` and `primary` find it.",
        shown_default="`any`"),
    Variable("DB_PGBOUNCER", DATABASE, False, flag(),
        "Set to `true` behind PgBouncer in transaction mode, before the primary or the replica."
        " Turns named prepared statements and session settings off; docs/deployment.md lists what"
        " to set on the role instead."),
)
# Forms ``Settings.mail_server``, with MAIL_URL.
MAIL_TOKEN_FILE: Variable[Any] = Variable("MAIL_TOKEN_FILE", MAIL, None, READABLE_FILE,
    "A file with an OAuth access token, with which the user in `MAIL_URL` signs in (XOAUTH2 or"
    " OAUTHBEARER) instead of a password. It is read for each connection, so that it can rotate."
    " Needs `smtp+starttls://` or `smtps://`, unless the server is on this machine.")
# fmt: on

VARIABLES: dict[str, Variable[Any]] = {
    declared.name: declared
    for declared in sorted(
        (
            *DATABASE_VARIABLES,
            *(one.metadata["variable"] for one in fields(Settings) if "variable" in one.metadata),
            MAIL_TOKEN_FILE,
        ),
        key=lambda declared: GROUPS.index(declared.group),
    )
}
