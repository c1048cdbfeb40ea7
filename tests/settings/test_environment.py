"""Settings from environment variables, and the error line for a wrong value."""

from pathlib import Path

import pytest

from service.settings import VARIABLES, Rate, Settings, SettingsError, load_settings
from tests.support.clients import NEW_KEY, SECRET_KEY

PASSWORD = "p@ss#w%rd:/?"
USER_ALONE = "a user without a password, because MAIL_TOKEN_FILE is set"
DOMAIN_NAME = "expected a domain name in lower case, such as app.example"
NO_DOMAINS = (
    *("192.0.2.1", "127.1", "0x7f.1", "::1", "[::1]", "App.example", "app.example.", ".example"),
    *("https://app.example", "app.example:443", "app_1.example", "-a.example", "a..example"),
    *("*.example", "ä.example", f"{'a' * 64}.example", f"{'a.' * 126}example"),
)
ORIGINS = "expected origins as browsers send them, separated by commas"
NO_PASSKEY_ORIGINS = (
    *("http://app.example", "https://192.0.2.1", "https://127.1", "https://[::1]", "null", "*"),
    *("http://127.0.0.1:8080", "https://App.example", "https://app.example/", "app.test", ","),
    *("https://app.example:443", "ftp://localhost", "http://localhost.example"),
)
# No page of these origins could use passkeys of the RP ID.
UNUSABLE_RP_IDS = [
    {"RP_ID": "b.example"},
    {"RP_ID": "b.example", "PUBLIC_ORIGIN": "https://a.example"},
    {"RP_ID": "sub.a.example", "PUBLIC_ORIGIN": "https://a.example"},
    {"RP_ID": "example", "PUBLIC_ORIGIN": "https://badexample"},
    {"RP_ID": "com", "PUBLIC_ORIGIN": "https://a.com"},
    {"RP_ID": "co.uk", "PUBLIC_ORIGIN": "https://a.co.uk", "RP_ORIGINS": "https://b.co.uk"},
    {"RP_ID": "a.example", "PUBLIC_ORIGIN": "http://a.example"},
]
EXTERNAL = {"SECRET_KEY": SECRET_KEY}


def test_database_is_embedded_by_default() -> None:
    settings = load_settings({})
    assert settings.database is None
    assert settings.migrate_on_start
    assert (settings.host, settings.port) == ("127.0.0.1", 8080)
    assert settings.data_dir == Path.cwd() / ".data"


def test_migrate_on_start_can_be_disabled() -> None:
    assert not load_settings({"MIGRATE_ON_START": "false"}).migrate_on_start


def test_environment_defaults_match_the_settings_class() -> None:
    """Except for defaults that depend on other settings or on the working directory."""
    assert load_settings({}) == Settings(
        data_dir=Path.cwd() / ".data",
        migrate_on_start=True,
        public_origin="http://localhost:8080",
    )


@pytest.mark.asvs("3.4.2")
@pytest.mark.parametrize(
    ("environ", "line"),
    [
        ({"PORT": "eighty"}, "PORT: expected a whole number from 0 to 65535"),
        ({"PORT": "80 80"}, "PORT: expected a whole number from 0 to 65535"),
        ({"PORT": "8_080"}, "PORT: expected a whole number from 0 to 65535"),
        ({"PORT": "\u0968"}, "PORT: expected a whole number from 0 to 65535"),
        ({"SECRET_KEY": "\udcff" * 40}, "SECRET_KEY: expected text in UTF-8"),
        ({"DATA_DIR": "~nosuchuser/x"}, "DATA_DIR: expected the path of a directory"),
        ({"DB_PASS_FILE": "x" * 5000}, "DB_PASS_FILE: expected the path of a file"),
        (
            {"DATABASE_URL": "postgresql://u@h/n?sslmode=bogus"},
            "DATABASE_URL: sslmode: expected one of",
        ),
        ({"DATABASE_URL": "postgresql://u@h/n?foo=bar"}, "DATABASE_URL: unknown option foo"),
        ({"TRUSTED_PROXIES": "10.0.0.0/33"}, "TRUSTED_PROXIES: expected IP addresses or networks"),
        ({"PUBLIC_ORIGIN": "https://a/path"}, "PUBLIC_ORIGIN: expected an origin without a path"),
        ({"PUBLIC_ORIGIN": "https://a/"}, "PUBLIC_ORIGIN: expected an origin without a path"),
        ({"PUBLIC_ORIGIN": "https://::1"}, "PUBLIC_ORIGIN: expected an origin without a path"),
        ({"PUBLIC_ORIGIN": "https://[::1"}, "PUBLIC_ORIGIN: expected an origin without a path"),
        ({"PUBLIC_ORIGIN": "https://[::zz]"}, "PUBLIC_ORIGIN: expected an origin without a path"),
        (
            {"PUBLIC_ORIGIN": "https://[127.0.0.1]"},
            "PUBLIC_ORIGIN: expected an origin without a path",
        ),
        ({"PUBLIC_ORIGIN": "https://a:"}, "PUBLIC_ORIGIN: expected an origin without a path"),
        ({"PUBLIC_ORIGIN": "https://a:0"}, "PUBLIC_ORIGIN: expected an origin without a path"),
        ({"PUBLIC_ORIGIN": "https://a:65536"}, "PUBLIC_ORIGIN: expected an origin without a path"),
        ({"CORS_ORIGINS": "http://[::zz]"}, "CORS_ORIGINS: expected origins as browsers"),
        ({"CORS_ORIGINS": "http://a:65536"}, "CORS_ORIGINS: expected origins as browsers"),
        ({"PUBLIC_ORIGIN": "https://a\n.example"}, "PUBLIC_ORIGIN: expected text without control"),
        ({"CORS_ORIGINS": "*"}, "CORS_ORIGINS: expected origins as browsers send them"),
        ({"CORS_HEADERS": "*"}, "CORS_HEADERS: expected names of headers, separated by commas"),
        ({"CORS_HEADERS": "x-b3: 1"}, "CORS_HEADERS: expected names of headers"),
        ({"CORS_HEADERS": "x-a x-b"}, "CORS_HEADERS: expected names of headers"),
        ({"CORS_ORIGINS": "null"}, "CORS_ORIGINS: expected origins as browsers send them"),
        (
            {"CORS_ORIGINS": "https://a.example/"},
            "CORS_ORIGINS: expected origins as browsers send them",
        ),
        (
            {"CORS_ORIGINS": "https://A.example"},
            "CORS_ORIGINS: expected origins as browsers send them",
        ),
        (
            {"CORS_ORIGINS": "https://a.example:443"},
            "CORS_ORIGINS: expected origins as browsers send them",
        ),
        (
            {"CORS_ORIGINS": "https://*.a.example"},
            "CORS_ORIGINS: expected origins as browsers send them",
        ),
        (
            {"CORS_ORIGINS": "https://a.example b"},
            "CORS_ORIGINS: expected origins as browsers send them",
        ),
        ({"PORT": "65536"}, "PORT: expected a whole number from 0 to 65535"),
        *(({"RP_ID": rp_id}, f"RP_ID: {DOMAIN_NAME}") for rp_id in NO_DOMAINS),
        *(({"RP_ORIGINS": origin}, f"RP_ORIGINS: {ORIGINS}") for origin in NO_PASSKEY_ORIGINS),
        *(
            (environ, f"RP_ID: {DOMAIN_NAME}: the host of PUBLIC_ORIGIN or of one of RP_ORIGINS")
            for environ in UNUSABLE_RP_IDS
        ),
        (
            {"PUBLIC_ORIGIN": "https://192.0.2.1", "RP_ORIGINS": "https://app.example"},
            "RP_ID: required if RP_ORIGINS is set and PUBLIC_ORIGIN is an IP address",
        ),
        (
            {"DB_POOL_SIZE": "0"},
            "DB_POOL_SIZE: expected a whole number of connections from 1 to 1000",
        ),
        ({"DB_CONNECT_TIMEOUT_S": "soon"}, "DB_CONNECT_TIMEOUT_S: expected a number of seconds"),
        ({"DB_CONNECT_TIMEOUT_S": "nan"}, "DB_CONNECT_TIMEOUT_S: expected a number of seconds"),
        ({"MIGRATE_ON_START": "maybe"}, "MIGRATE_ON_START: expected true or false"),
        ({"THROTTLE_MAIL_PER_IP": "0/h"}, "THROTTLE_MAIL_PER_IP: expected 1 to 99999 attempts"),
        ({"THROTTLE_MAIL_PER_IP": "10"}, "THROTTLE_MAIL_PER_IP: expected 1 to 99999 attempts"),
        ({"LOG_LEVEL": "loud"}, "LOG_LEVEL: expected one of debug, info, warning, error"),
        ({"DB_SSLMODE": "on"}, "DB_SSLMODE: expected one of"),
        ({"SECRET_KEY": "short"}, "SECRET_KEY: expected at least 32 bytes"),
        (
            {"SECRET_KEY": SECRET_KEY, "SECRET_KEY_PREVIOUS": "short"},
            "SECRET_KEY_PREVIOUS: expected at least 32 bytes",
        ),
        (
            {"SECRET_KEY": SECRET_KEY, "SECRET_KEY_PREVIOUS": SECRET_KEY},
            "SECRET_KEY_PREVIOUS: expected another key than SECRET_KEY",
        ),
        (
            {"SECRET_KEY_PREVIOUS": SECRET_KEY},
            "SECRET_KEY: required if SECRET_KEY_PREVIOUS is set; expected at least 32 bytes",
        ),
        (
            {"DATABASE_URL": "postgresql://u@h/n"},
            "SECRET_KEY: required with an external database; expected at least 32 bytes",
        ),
        ({"DATABASE_URL": "mysql://u@h/n"}, "DATABASE_URL: expected postgresql://"),
        (
            {"DATABASE_REPLICA_URL": "postgresql://u@h/n"},
            "DATABASE_URL: required if DATABASE_REPLICA_URL is set; expected postgresql://",
        ),
        (
            {"DATABASE_DIRECT_URL": "postgresql://u@h/n"},
            "DATABASE_URL: required if DATABASE_DIRECT_URL is set; expected postgresql://",
        ),
        (
            {
                **EXTERNAL,
                "DATABASE_URL": "postgresql://u@h/n",
                "DATABASE_REPLICA_URL": "mysql://u@h/n",
            },
            "DATABASE_REPLICA_URL: expected postgresql://",
        ),
        (
            {
                **EXTERNAL,
                "DATABASE_URL": "postgresql://u@h/n",
                "DATABASE_DIRECT_URL": "postgresql://u@h/n?a=b",
            },
            "DATABASE_DIRECT_URL: unknown option a",
        ),
        ({"DATABASE_URL": "postgresql://h/n"}, "DATABASE_URL: expected postgresql://"),
        ({"DATABASE_URL": "postgresql://u@/n"}, "DATABASE_URL: expected postgresql://"),
        ({"DATABASE_URL": "postgresql://u@h:x/n"}, "DATABASE_URL: expected postgresql://"),
        ({"DATABASE_URL": "postgresql://u@h:0/n"}, "DATABASE_URL: expected a port from 1"),
        (
            {"DB_HOST": "h"},
            "DB_NAME: required if other DB_ variables are set; expected the name of the database",
        ),
        ({"DB_PASS": "secret"}, "DB_HOST: required if other DB_ variables are set; expected the"),
        ({"DB_HOST": "h", "DB_NAME": "n"}, "DB_USER: required if other DB_ variables are set"),
        (
            {"DB_HOST": "h", "DB_NAME": "n", "DB_USER": "u", "DB_PORT": "x"},
            "DB_PORT: expected a port from 1 to 65535",
        ),
        (
            {"DB_HOST": "a,b,c", "DB_NAME": "n", "DB_USER": "u", "DB_PORT": "1,2"},
            "DB_PORT: expected one port, or one for each host",
        ),
        ({"DB_HOST": "a,,b", "DB_NAME": "n", "DB_USER": "u"}, "DB_HOST: expected the name or IP"),
        (
            {
                "DB_HOST": "h",
                "DB_NAME": "n",
                "DB_USER": "u",
                "DB_SSLMODE": "require",
                "DB_SSLROOTCERT": "system",
            },
            "DB_SSLMODE: expected verify-full, because sslrootcert is system",
        ),
        (
            {"DATABASE_URL": "postgresql://u@h/n?sslrootcert=system", "DB_SSLMODE": "require"},
            "DB_SSLMODE: expected verify-full, because sslrootcert is system",
        ),
        ({"MAIL_URL": "smtp://ada:p%FF@mail.example"}, "MAIL_URL: expected smtp://"),
        ({"MAIL_URL": "http://mail.example"}, "MAIL_URL: expected smtp://"),
        ({"MAIL_URL": "smtp://"}, "MAIL_URL: expected smtp://"),
        ({"MAIL_URL": "smtp://mail.example:0"}, "MAIL_URL: expected smtp://"),
        ({"MAIL_URL": "smtps://ada:secret@mail.example:99999"}, "MAIL_URL: expected smtp://"),
        *(
            (
                {"MAIL_URL": "smtp://mail.example", "HOST": host},
                "PUBLIC_ORIGIN: required if MAIL_URL is set and HOST means every interface;"
                " expected an origin without a path, such as https://app.example",
            )
            for host in ("0.0.0.0", "::", "0", "0:0::0", "::ffff:0.0.0.0")
        ),
        ({"MAIL_FROM": "nobody"}, "MAIL_FROM: expected a sender such as"),
        ({"MAIL_FROM": "a@one.example, b@two.example"}, "MAIL_FROM: expected a sender"),
        ({"MAIL_FROM": "a@one.example\r\nBcc: b@two.example"}, "MAIL_FROM: expected text without"),
        ({"MAIL_FROM": "=?utf-8?q?=0d=0aBcc=3a?= <a@one.example>"}, "MAIL_FROM: expected a sender"),
        ({"MAIL_EHLO": "box"}, "MAIL_EHLO: expected a full name or an IP in brackets"),
        ({"MAIL_EHLO": "box.example SIZE=1"}, "MAIL_EHLO: expected"),
        ({"MAIL_EHLO": "192.0.2.7"}, "MAIL_EHLO: expected"),
        ({"MAIL_EHLO": "[2001:db8::7]"}, "MAIL_EHLO: expected"),
        ({"MAIL_TEMPLATES_DIR": "/nonexistent"}, "MAIL_TEMPLATES_DIR: expected the path"),
        ({"DB_PASS_FILE": "/nonexistent"}, "DB_PASS_FILE: expected the path of a file"),
        ({"MAIL_TOKEN_FILE": "/nonexistent"}, "MAIL_TOKEN_FILE: expected the path of a file"),
        ({"MAIL_TOKEN_FILE": __file__}, f"MAIL_URL: expected {USER_ALONE}"),
        (
            {"MAIL_TOKEN_FILE": __file__, "MAIL_URL": "smtps://mail.example"},
            f"MAIL_URL: expected {USER_ALONE}",
        ),
        (
            {"MAIL_TOKEN_FILE": __file__, "MAIL_URL": "smtps://ada:secret@mail.example"},
            f"MAIL_URL: expected {USER_ALONE}",
        ),
        *(
            (
                {"MAIL_TOKEN_FILE": __file__, "MAIL_URL": f"smtp://ada@{host}"},
                "MAIL_URL: expected smtp+starttls:// or smtps://, because MAIL_TOKEN_FILE is set",
            )
            for host in ("mail.example", "127.mail.example", "10.0.0.7", "[2001:db8::7]:25")
        ),
    ],
)
def test_wrong_value_is_reported_in_one_line_that_names_the_variable(
    environ: dict[str, str], line: str
) -> None:
    with pytest.raises(SettingsError) as raised:
        load_settings(environ)
    message = str(raised.value)
    assert message.startswith(line)
    assert "\n" not in message
    for value in environ.values():
        assert len(value) < 3 or value in line or value not in message, "the value is not shown"


@pytest.mark.parametrize(
    ("text", "rate"),
    [
        ("10/15m", Rate(10, 900)),
        ("1/s", Rate(1, 1)),
        ("7/90s", Rate(7, 90)),
        ("20/h", Rate(20, 3600)),
        ("99999/30d", Rate(99_999, 30 * 86_400)),
    ],
)
def test_rates_have_units(text: str, rate: Rate) -> None:
    settings = load_settings({"THROTTLE_SIGN_IN_PER_ACCOUNT": text})
    assert settings.throttle_sign_in_per_account == rate
    assert str(rate) == text


def test_origins_are_separated_by_commas() -> None:
    given = "https://app.example, http://localhost:3000,http://[::1]:8080,capacitor://localhost"
    settings = load_settings({"CORS_ORIGINS": given})
    assert settings.cors_origins == set(given.replace(" ", "").split(","))


def test_header_names_are_separated_by_commas() -> None:
    settings = load_settings({"CORS_HEADERS": "x-datadog-trace-id, X-B3-TraceId,"})
    assert settings.cors_headers == {"x-datadog-trace-id", "X-B3-TraceId"}


@pytest.mark.parametrize("name", ["x-forwarded-for", "X-FORWARDED-FOR", "X-Forwarded-For"])
def test_case_of_the_trusted_header_does_not_matter(name: str) -> None:
    settings = load_settings({"TRUSTED_PROXY_HEADER": name})
    assert settings.trusted_proxy_header == "X-Forwarded-For"


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "[::1]"])
def test_access_token_may_go_to_a_mail_server_on_this_machine_without_tls(host: str) -> None:
    settings = load_settings({"MAIL_TOKEN_FILE": __file__, "MAIL_URL": f"smtp://ada@{host}"})
    assert settings.mail_server is not None
    assert settings.mail_server.security == "none"


@pytest.mark.parametrize(
    "origin", ["https://[2001:db8::1]", "http://[::1]:8080", "http://[::ffff:192.0.2.1]:65535"]
)
def test_public_origin_may_be_an_ipv6_literal(origin: str) -> None:
    assert load_settings({"PUBLIC_ORIGIN": origin}).public_origin == origin


@pytest.mark.parametrize(
    ("host", "origin"),
    [
        ("::1", "http://[::1]:8080"),
        ("::ffff:127.0.0.1", "http://[::ffff:127.0.0.1]:8080"),
        ("fe80::1%eth0", "http://[fe80::1%25eth0]:8080"),
        ("app.example", "http://app.example:8080"),
    ],
)
def test_default_origin_has_an_ipv6_host_in_brackets(host: str, origin: str) -> None:
    assert load_settings({"HOST": host}).public_origin == origin


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "0.0.0.0", "::", "0"])
def test_default_origin_is_localhost_if_browsers_here_reach_the_host_by_it(host: str) -> None:
    assert load_settings({"HOST": host}).public_origin == "http://localhost:8080"


@pytest.mark.parametrize(
    ("given", "origin"),
    [
        ("https://App.Example", "https://app.example"),
        ("https://app.example:443", "https://app.example"),
        ("http://[2001:DB8::1]:80", "http://[2001:db8::1]"),
        ("http://app.example:443", "http://app.example:443"),
    ],
)
def test_public_origin_is_written_as_browsers_send_it(given: str, origin: str) -> None:
    assert load_settings({"PUBLIC_ORIGIN": given}).public_origin == origin


@pytest.mark.parametrize(
    "environ",
    [
        {"RP_ID": "localhost"},
        {"RP_ID": "a.example", "PUBLIC_ORIGIN": "https://a.example:8443"},
        {"RP_ID": "example.com", "PUBLIC_ORIGIN": "https://a.b.example.com"},
        {"RP_ID": "b.example", "RP_ORIGINS": "https://b.example,https://c.example"},
        {"RP_ORIGINS": "http://localhost:3000, http://app.localhost:3000"},
        {"RP_ORIGINS": "https://b.example", "PUBLIC_ORIGIN": "https://a.example"},
    ],
)
def test_rp_id_may_be_of_any_page_that_uses_passkeys(environ: dict[str, str]) -> None:
    settings = load_settings(environ)
    assert settings.rp_id == environ.get("RP_ID", "")
    assert len(settings.rp_origins) == len(environ.get("RP_ORIGINS", "").split(",")) - (
        "RP_ORIGINS" not in environ
    )


@pytest.mark.parametrize("host", ["127.0.0.2", "::1", "localhost", "192.0.2.1", "app.example"])
def test_public_origin_is_optional_if_the_host_is_one_interface(host: str) -> None:
    settings = load_settings({"MAIL_URL": "smtp://mail.example", "HOST": host})
    assert host in settings.public_origin


def test_audience_of_tokens_is_their_issuer_by_default() -> None:
    settings = load_settings({"TOKEN_ISSUER": "https://accounts.example"})
    assert settings.token_audience == "https://accounts.example"
    settings = load_settings({"TOKEN_ISSUER": "a", "TOKEN_AUDIENCE": "b"})
    assert (settings.token_issuer, settings.token_audience) == ("a", "b")


@pytest.mark.parametrize("sender", ["a@b", "J. Doe <a@b.example>", '"Éditions, B" <a@b.example>'])
def test_mail_sender_is_accepted(sender: str) -> None:
    assert load_settings({"MAIL_FROM": sender}).mail_from == sender


@pytest.mark.parametrize("name", ["mail.app.example", "[192.0.2.1]", "[IPv6:2001:db8::1]"])
def test_ehlo_name_is_accepted(name: str) -> None:
    assert load_settings({"MAIL_EHLO": name}).mail_ehlo == name


def test_empty_variable_counts_as_unset() -> None:
    for empty in ("", " ", "\n"):
        assert load_settings(dict.fromkeys(VARIABLES, empty)) == load_settings({})


@pytest.mark.parametrize("name", ["DB_PORT", "METRICS_PORT"])
@pytest.mark.parametrize("link", ["tcp://10.0.0.1:5432", "udp://[fd00::1]:53"])
def test_link_to_a_service_of_the_same_name_counts_as_unset(name: str, link: str) -> None:
    """Kubernetes and Docker set it in containers next to a service called db or metrics."""
    database = {**EXTERNAL, "DB_HOST": "h", "DB_NAME": "n", "DB_USER": "u"}
    for environ in ({}, database):
        assert load_settings({**environ, name: link}) == load_settings(environ)


@pytest.mark.parametrize("link", ["tcp://db:5432", "http://10.0.0.1:5432", "tcp://10.0.0.1"])
def test_port_that_is_no_such_link_is_refused(link: str) -> None:
    with pytest.raises(SettingsError, match="METRICS_PORT: expected a whole number"):
        load_settings({"METRICS_PORT": link})


# Values of the variables that have no default to write down.
SAMPLES = {
    "CORS_HEADERS": "x-datadog-trace-id",
    "CORS_ORIGINS": "https://app.example",
    "DATABASE_DIRECT_URL": "postgresql://u:p@direct/n",
    "DATABASE_REPLICA_URL": "postgresql://u:p@standby/n",
    "DATABASE_URL": "postgresql://u:p@h/n",
    "DATA_DIR": "/tmp",
    "DB_HOST": "h",
    "MAIL_EHLO": "mail.app.example",
    "DB_NAME": "n",
    "DB_PASS": PASSWORD,
    "DB_PASS_FILE": __file__,
    "DB_PORT": "5433",
    "DB_SSLMODE": "require",
    "DB_SSLROOTCERT": __file__,
    "DB_TARGET_SESSION_ATTRS": "read-write",
    "DB_USER": "u",
    "MAIL_TEMPLATES_DIR": "/tmp",
    "MAIL_TOKEN_FILE": __file__,
    "MAIL_URL": "smtp://mail.example",
    "MIGRATE_ON_START": "true",
    "PUBLIC_ORIGIN": "https://app.example",
    "SECRET_KEY": SECRET_KEY,
    "RP_ID": "localhost",
    "RP_ORIGINS": "https://app.example",
    "SECRET_KEY_PREVIOUS": NEW_KEY,
    "TOKEN_AUDIENCE": "https://api.example",
    "TRUSTED_PROXIES": "10.0.0.0/8",
}


def with_sample(name: str, form: str = "{}") -> dict[str, str]:
    """Return an environment in which the variable has a value, written in the given form."""
    value = SAMPLES.get(name) or VARIABLES[name].default_text.strip("`")
    assert value, f"{name} has no default: add a value to SAMPLES"
    needed = {"SECRET_KEY": SECRET_KEY, "DB_HOST": "h", "DB_NAME": "n", "DB_USER": "u"}
    if name == "MAIL_TOKEN_FILE":
        needed["MAIL_URL"] = "smtps://relay@mail.example"
    return {**needed, name: form.format(value)}


@pytest.mark.parametrize("name", VARIABLES)
def test_white_space_around_any_value_is_removed(name: str) -> None:
    """A line break at the end must not get into links, tokens or passwords."""
    for form in ("{}\n", "{}\r\n", "\n {}", "{}\t", "{}\xa0"):
        assert load_settings(with_sample(name, form)) == load_settings(with_sample(name)), form


@pytest.mark.parametrize("name", VARIABLES)
def test_control_character_inside_any_value_is_refused(name: str) -> None:
    for control in ("\n", "\r", "\t", "\x1b", "\x7f", "\x85", "\u2028"):
        environ = with_sample(name)
        environ[name] = f"{environ[name][:1]}{control}{environ[name]}"
        with pytest.raises(SettingsError) as raised:
            load_settings(environ)
        assert str(raised.value) == f"{name}: expected text without control characters", control


def test_password_file_loses_the_line_break_at_its_end_alone(tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_bytes(b"\xef\xbb\xbf a password \r\n")
    settings = load_settings({**with_sample("DB_HOST"), "DB_PASS_FILE": str(file)})
    assert settings.database is not None
    assert settings.database.read_password() == " a password "


def test_other_urls_share_tls_and_the_password_file() -> None:
    urls = ("DATABASE_URL", "DATABASE_DIRECT_URL", "DATABASE_REPLICA_URL")
    shared = {
        "DB_PASS_FILE": __file__,
        "DB_SSLMODE": "require",
        "DB_TARGET_SESSION_ATTRS": "read-write",
        "DB_PGBOUNCER": "true",
    }
    environ = {**EXTERNAL, **shared, **dict.fromkeys(urls, "postgresql://u@h/n")}
    settings = load_settings(environ)
    primary, direct, replica = (
        settings.database,
        settings.direct_database,
        settings.replica_database,
    )
    assert primary is not None
    assert direct is not None
    assert replica is not None
    assert primary.password_file == direct.password_file == replica.password_file == Path(__file__)
    assert dict(primary.options) == {"sslmode": "require", "target_session_attrs": "read-write"}
    assert dict(direct.options) == dict(replica.options) == {"sslmode": "require"}
    assert (primary.pgbouncer, direct.pgbouncer, replica.pgbouncer) == (True, False, True)


def test_secrets_are_hidden_from_repr() -> None:
    urls = ("DATABASE_URL", "DATABASE_DIRECT_URL", "DATABASE_REPLICA_URL")
    given = dict.fromkeys(urls, f"postgresql://u:{PASSWORD}@h/n")
    settings = load_settings({**EXTERNAL, "SECRET_KEY_PREVIOUS": NEW_KEY, **given})
    assert SECRET_KEY not in repr(settings)
    assert NEW_KEY not in repr(settings)
    assert PASSWORD not in repr(settings)
