"""Reads and validates the settings from the environment before anything starts."""

import importlib.util
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from service.settings.connections import (
    Database,
    MailServer,
    default_origin,
    is_local,
    is_wildcard,
)
from service.settings.model import DATABASE_VARIABLES, MAIL_TOKEN_FILE, VARIABLES, Settings
from service.settings.urls import pair_hosts, parse_database_url, refuse_conflicts
from service.settings.variables import SettingsError, has_passkeys

# Control characters, and the separators of lines and paragraphs.
_CONTROLS = {"Cc", "Zl", "Zp"}
# The value of DB_PORT in a container next to a service called db, unless the operator sets another.
_SERVICE_LINK = re.compile(r"(tcp|udp|sctp)://([0-9.]+|\[[0-9a-f:.]+\]):[0-9]+")
# Fields of Settings, and the variables that set them.
_OTHER_URLS = {"direct_database": "DATABASE_DIRECT_URL", "replica_database": "DATABASE_REPLICA_URL"}


def load_settings(environ: Mapping[str, str]) -> Settings:
    """Read the settings from ``environ``.

    White space around any value is removed, secrets included: a line break at the end would
    otherwise get into links and tokens. Control characters inside one are refused, as they would
    get into headers and logs. An empty variable counts as not set, and so does a port that
    Kubernetes or Docker has set to the address of a service.

    Raises SettingsError for an invalid variable, without showing its value.
    """
    given = {
        name: value
        for name in VARIABLES
        if (value := environ.get(name, "").strip())
        and not (name.endswith("_PORT") and _SERVICE_LINK.fullmatch(value))
    }
    for name, value in given.items():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise SettingsError(f"{name}: expected text in UTF-8") from None
        if any(unicodedata.category(character) in _CONTROLS for character in value):
            raise SettingsError(f"{name}: expected text without control characters")
    values: dict[str, Any] = {}
    for setting in fields(Settings):
        variable = setting.metadata.get("variable")
        if variable and variable.name in given:
            values[setting.name] = variable.parse(given[variable.name])
    parts = {
        one.name: one.parse(given[one.name]) for one in DATABASE_VARIABLES if one.name in given
    }
    database = _read_database(parts)
    if database is not None and "secret_key" not in values:
        raise VARIABLES["SECRET_KEY"].missing("with an external database")
    if "secret_key_previous" in values:
        if "secret_key" not in values:
            raise VARIABLES["SECRET_KEY"].missing("if SECRET_KEY_PREVIOUS is set")
        if values["secret_key_previous"] == values["secret_key"]:
            raise SettingsError("SECRET_KEY_PREVIOUS: expected another key than SECRET_KEY")
    for setting_name, name in _OTHER_URLS.items():
        if name in given and database is None:
            raise VARIABLES["DATABASE_URL"].missing(f"if {name} is set")
        values[setting_name] = _read_other_url(name, parts)
    if MAIL_TOKEN_FILE.name in given:
        token_file = MAIL_TOKEN_FILE.parse(given[MAIL_TOKEN_FILE.name])
        values["mail_server"] = _with_token(values.get("mail_server"), token_file)
    if values.get("traces"):
        _check_traces(environ)
    host, port = values.get("host", Settings.host), values.get("port", Settings.port)
    if "mail_server" in values and "public_origin" not in values and is_wildcard(host):
        condition = "if MAIL_URL is set and HOST means every interface"
        raise VARIABLES["PUBLIC_ORIGIN"].missing(condition)
    values.setdefault("public_origin", default_origin(host, port))
    if "rp_id" in values or "rp_origins" in values:
        _check_passkeys(values)
    return Settings(
        **{
            "migrate_on_start": database is None,
            "data_dir": Settings.data_dir.absolute(),
            "token_audience": values.get("token_issuer", Settings.token_issuer),
            **values,
        },
        database=database,
    )


def _read_database(parts: Mapping[str, Any]) -> Database | None:
    """Build the database from its variables, or return None if none is configured."""
    options = _read_options(parts, "sslmode", "sslrootcert", "target_session_attrs")
    password_file = parts.get("DB_PASS_FILE")
    pgbouncer = parts.get("DB_PGBOUNCER", False)
    if "DATABASE_URL" in parts:
        url = parts["DATABASE_URL"]
        database = parse_database_url("DATABASE_URL", url, options, password_file)
        return replace(database, pgbouncer=pgbouncer)
    if not parts.keys() & {"DB_HOST", "DB_PORT", "DB_NAME", "DB_USER", "DB_PASS"}:
        return None
    for name in ("DB_HOST", "DB_NAME", "DB_USER"):
        if name not in parts:
            raise VARIABLES[name].missing("if other DB_ variables are set")
    refuse_conflicts(options, "DB_SSLMODE")
    hosts = [host.strip() for host in parts["DB_HOST"].split(",")]
    if not all(hosts):
        raise VARIABLES["DB_HOST"].refusal(" between commas")
    return Database(
        hosts=pair_hosts(hosts, parts.get("DB_PORT", "").split(","), "DB_PORT"),
        name=parts["DB_NAME"],
        user=parts["DB_USER"],
        password=parts.get("DB_PASS", ""),
        password_file=password_file,
        options=tuple(options.items()),
        pgbouncer=pgbouncer,
    )


def _read_other_url(name: str, parts: Mapping[str, Any]) -> Database | None:
    """Build another way to the database, which has its own hosts but the same TLS and password."""
    if name not in parts:
        return None
    options = _read_options(parts, "sslmode", "sslrootcert")
    database = parse_database_url(name, parts[name], options, parts.get("DB_PASS_FILE"))
    past_pgbouncer = name == "DATABASE_DIRECT_URL"
    return replace(database, pgbouncer=not past_pgbouncer and parts.get("DB_PGBOUNCER", False))


def _read_options(parts: Mapping[str, Any], *names: str) -> dict[str, str]:
    """Return the options that variables such as DB_SSLMODE set."""
    named = {name: f"DB_{name.upper()}" for name in names}
    return {name: parts[variable] for name, variable in named.items() if variable in parts}


def _with_token(server: MailServer | None, token_file: Path) -> MailServer:
    if server is None or not server.user or server.password:
        raise SettingsError(
            "MAIL_URL: expected a user without a password, because MAIL_TOKEN_FILE is set"
        )
    # RFC 6750 §5.3: whoever sees the token can use it.
    if server.security == "none" and not is_local(server.host):
        raise SettingsError(
            "MAIL_URL: expected smtp+starttls:// or smtps://, because MAIL_TOKEN_FILE is set and"
            " the mail server is not on this machine"
        )
    return replace(server, token_file=token_file)


def _check_passkeys(values: Mapping[str, Any]) -> None:
    """Reject an RP ID that no page could use. Raises SettingsError."""
    # A slow import, which reads the list of public suffixes.
    from fido2.rpid import verify_rp_id

    public_origin = values["public_origin"]
    if "rp_id" not in values and not has_passkeys(public_origin):
        condition = "if RP_ORIGINS is set and PUBLIC_ORIGIN is an IP address or not https://"
        raise VARIABLES["RP_ID"].missing(condition)
    rp_id = values.get("rp_id") or urlsplit(public_origin).hostname
    origins = {public_origin, *values.get("rp_origins", ())}
    if not any(verify_rp_id(rp_id, origin) for origin in origins):
        raise VARIABLES["RP_ID"].refusal(
            ": the host of PUBLIC_ORIGIN or of one of RP_ORIGINS, or a domain above it that is no"
            " public suffix"
        )


def _check_traces(environ: Mapping[str, str]) -> None:
    """Reject configurations whose traces would never arrive. Raises SettingsError."""
    try:
        installed = importlib.util.find_spec("opentelemetry.exporter.otlp.proto.http")
    except ModuleNotFoundError:
        installed = None
    if installed is None:
        raise SettingsError(
            "TRACES: expected the extra otel to be installed; in a checkout: pip install '.[otel]'"
        )
    for name in ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"):
        if environ.get(name, "http/protobuf") not in ("", "http/protobuf"):
            raise SettingsError(f"{name}: expected http/protobuf, the protocol of port 4318")
