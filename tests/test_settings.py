"""Settings: what is read, what is refused, and in which words."""

import re
from pathlib import Path

import asyncpg
import pytest

from service.settings import (
    VARIABLES,
    Database,
    MailServer,
    Rate,
    Settings,
    SettingsError,
    load_settings,
)
from tests.support.clients import SECRET_KEY

PASSWORD = "p@ss#w%rd:/?"
ESCAPED = "p%40ss%23w%25rd%3A%2F%3F"
EXTERNAL = {"SECRET_KEY": SECRET_KEY}


def test_without_a_database_it_is_embedded() -> None:
    settings = load_settings({})
    assert settings.database is None
    assert settings.migrate_on_start
    assert (settings.host, settings.port) == ("127.0.0.1", 8080)
    assert settings.data_dir == Path.cwd() / ".data"


def test_migrating_on_start_can_be_chosen() -> None:
    assert not load_settings({"MIGRATE_ON_START": "false"}).migrate_on_start


def test_defaults_are_those_of_the_class() -> None:
    assert load_settings({}) == Settings(
        data_dir=Path.cwd() / ".data",
        migrate_on_start=True,
        public_origin="http://127.0.0.1:8080",
    )


@pytest.mark.parametrize(
    "environ",
    [
        {"DATABASE_URL": f"postgresql://ada:{ESCAPED}@db.example:5433/accounts"},
        {"DATABASE_URL": f"postgres://ada:{PASSWORD}@db.example:5433/accounts"},
        {
            "DB_HOST": "db.example",
            "DB_PORT": "5433",
            "DB_NAME": "accounts",
            "DB_USER": "ada",
            "DB_PASS": PASSWORD,
        },
    ],
    ids=["escaped", "as it is", "parts"],
)
def test_a_password_of_any_characters(environ: dict[str, str]) -> None:
    database = load_settings({**EXTERNAL, **environ}).database
    assert database is not None
    assert database.hosts == (("db.example", 5433),)
    assert (database.user, database.name) == ("ada", "accounts")
    assert database.read_password() == PASSWORD
    assert PASSWORD not in repr(database)


@pytest.mark.parametrize(
    ("url", "hosts", "name", "options"),
    [
        ("postgresql://ada@h", (("h", 5432),), "ada", {}),
        ("postgresql://ada:x@h/n?sslmode=verify-full", (("h", 5432),), "n", {"sslmode": "verify-full", "sslrootcert": "system"}),
        ("postgresql://eve:x@h:1/m?user=ada&dbname=n&port=6&host=h2", (("h2", 6),), "n", {}),
        ("postgresql://ada:x@h/n?connect_timeout=3&channel_binding=prefer&keepalives=1", (("h", 5432),), "n", {}),
        ("postgresql://ada:x@h1,h2:6/n", (("h1", 5432), ("h2", 6)), "n", {}),
        ("postgresql://ada:x@[::1]:6/n", (("::1", 6),), "n", {}),
        ("postgresql://ada:x@/n?host=/run/postgresql", (("/run/postgresql", 5432),), "n", {}),
        ("postgresql://h/n?user=ada&password=x", (("h", 5432),), "n", {}),
    ],
)  # fmt: skip
def test_urls_as_libpq_reads_them(
    url: str, hosts: tuple[tuple[str, int], ...], name: str, options: dict[str, str]
) -> None:
    database = load_settings({**EXTERNAL, "DATABASE_URL": url}).database
    assert database is not None
    assert (database.hosts, database.name, dict(database.options)) == (hosts, name, options)
    assert database.user == "ada"


def test_several_hosts_and_tls_as_parts() -> None:
    database = load_settings(
        {
            **EXTERNAL,
            "DB_HOST": "one,two",
            "DB_PORT": "6543",
            "DB_NAME": "n",
            "DB_USER": "u",
            "DB_SSLMODE": "verify-full",
            "DB_SSLROOTCERT": "/etc/ca.pem",
            "DB_TARGET_SESSION_ATTRS": "read-write",
        }
    ).database
    assert database is not None
    assert database.hosts == (("one", 6543), ("two", 6543))
    assert database.libpq_arguments()["target_session_attrs"] == "read-write"
    dsn = str(database.asyncpg_arguments()["dsn"])
    assert "sslmode=verify-full&sslrootcert=%2Fetc%2Fca.pem" in dsn


def test_a_password_file_may_rotate(tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text("first\n")
    parts = {"DB_HOST": "h", "DB_NAME": "n", "DB_USER": "u", "DB_PASS_FILE": str(file)}
    database = load_settings({**EXTERNAL, **parts}).database
    assert database is not None
    assert database.read_password() == "first"
    file.write_text("second\n")
    assert database.read_password() == "second"


@pytest.mark.parametrize(
    ("environ", "line"),
    [
        ({"PORT": "eighty"}, "PORT: expected a whole number from 0 to 65535"),
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
        ({"TRUSTED_PROXIES": "10.0.0.0/33"}, "TRUSTED_PROXIES: expected addresses or networks"),
        ({"PUBLIC_ORIGIN": "https://a/path"}, "PUBLIC_ORIGIN: expected an origin such as"),
        ({"CORS_ORIGINS": "*"}, "CORS_ORIGINS: expected origins with commas"),
        ({"CORS_ORIGINS": "null"}, "CORS_ORIGINS: expected origins with commas"),
        ({"CORS_ORIGINS": "https://a.example/"}, "CORS_ORIGINS: expected origins with commas"),
        ({"CORS_ORIGINS": "https://A.example"}, "CORS_ORIGINS: expected origins with commas"),
        ({"CORS_ORIGINS": "https://a.example:443"}, "CORS_ORIGINS: expected origins with commas"),
        ({"CORS_ORIGINS": "https://*.a.example"}, "CORS_ORIGINS: expected origins with commas"),
        ({"CORS_ORIGINS": "https://a.example b"}, "CORS_ORIGINS: expected origins with commas"),
        ({"PORT": "65536"}, "PORT: expected a whole number from 0 to 65535"),
        ({"DB_POOL_SIZE": "0"}, "DB_POOL_SIZE: expected a whole number from 1 to 1000"),
        ({"DB_CONNECT_TIMEOUT_S": "soon"}, "DB_CONNECT_TIMEOUT_S: expected a number of seconds"),
        ({"DB_CONNECT_TIMEOUT_S": "nan"}, "DB_CONNECT_TIMEOUT_S: expected a number of seconds"),
        ({"MIGRATE_ON_START": "maybe"}, "MIGRATE_ON_START: expected true or false"),
        ({"THROTTLE_MAIL_PER_IP": "0/h"}, "THROTTLE_MAIL_PER_IP: expected a number of"),
        ({"THROTTLE_MAIL_PER_IP": "10"}, "THROTTLE_MAIL_PER_IP: expected a number of"),
        ({"LOG_LEVEL": "loud"}, "LOG_LEVEL: expected one of debug, info, warning, error"),
        ({"DB_SSLMODE": "on"}, "DB_SSLMODE: expected one of"),
        ({"SECRET_KEY": "short"}, "SECRET_KEY: expected at least 32 bytes"),
        ({"DATABASE_URL": "postgresql://u@h/n"}, "SECRET_KEY: expected at least 32 bytes"),
        ({"DATABASE_URL": "mysql://u@h/n"}, "DATABASE_URL: expected postgresql://"),
        ({"DATABASE_URL": "postgresql://h/n"}, "DATABASE_URL: expected postgresql://"),
        ({"DATABASE_URL": "postgresql://u@/n"}, "DATABASE_URL: expected postgresql://"),
        ({"DATABASE_URL": "postgresql://u@h:x/n"}, "DATABASE_URL: expected postgresql://"),
        ({"DATABASE_URL": "postgresql://u@h:0/n"}, "DATABASE_URL: expected a port from 1"),
        ({"DB_HOST": "h"}, "DB_NAME: expected the name of the database"),
        ({"DB_PASS": "secret"}, "DB_HOST: expected the name or address"),
        ({"DB_HOST": "h", "DB_NAME": "n"}, "DB_USER: expected the name of the database's user"),
        (
            {"DB_HOST": "h", "DB_NAME": "n", "DB_USER": "u", "DB_PORT": "x"},
            "DB_PORT: expected a port from 1 to 65535",
        ),
        (
            {"DB_HOST": "a,b,c", "DB_NAME": "n", "DB_USER": "u", "DB_PORT": "1,2"},
            "DB_PORT: expected one port, or one for each host",
        ),
        ({"MAIL_URL": "http://mail.example"}, "MAIL_URL: expected smtp://"),
        ({"MAIL_URL": "smtp://"}, "MAIL_URL: expected smtp://"),
        ({"MAIL_URL": "smtp://mail.example:0"}, "MAIL_URL: expected smtp://"),
        ({"MAIL_URL": "smtps://ada:secret@mail.example:99999"}, "MAIL_URL: expected smtp://"),
        ({"MAIL_FROM": "nobody"}, "MAIL_FROM: expected an address such as"),
        ({"MAIL_FROM": "a@one.example, b@two.example"}, "MAIL_FROM: expected an address"),
        ({"MAIL_FROM": "a@one.example\r\nBcc: b@two.example"}, "MAIL_FROM: expected an address"),
        ({"MAIL_TEMPLATES_DIR": "/nonexistent"}, "MAIL_TEMPLATES_DIR: expected the path"),
        ({"DB_PASS_FILE": "/nonexistent"}, "DB_PASS_FILE: expected the path of a file"),
    ],
)
def test_what_is_wrong_is_named(environ: dict[str, str], line: str) -> None:
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
        ("20/h", Rate(20, 3600)),
        ("99999/30d", Rate(99_999, 30 * 86_400)),
    ],
)
def test_rates_have_units(text: str, rate: Rate) -> None:
    settings = load_settings({"THROTTLE_SIGN_IN_PER_ACCOUNT": text})
    assert settings.throttle_sign_in_per_account == rate


@pytest.mark.parametrize(
    ("url", "server"),
    [
        ("smtp://mail.example", MailServer("mail.example", 25, "none")),
        ("smtp://[::1]:1025/", MailServer("::1", 1025, "none")),
        ("smtp://relay@mail.example", MailServer("mail.example", 25, "none", "relay")),
        (
            f"smtp+starttls://ada@example.com:{PASSWORD}@mail.example",
            MailServer("mail.example", 587, "starttls", "ada@example.com", PASSWORD),
        ),
        (
            f"smtps://ada%40example.com:{ESCAPED}@mail.example:4650",
            MailServer("mail.example", 4650, "tls", "ada@example.com", PASSWORD),
        ),
    ],
)
def test_mail_servers(url: str, server: MailServer) -> None:
    settings = load_settings({"MAIL_URL": url})
    assert settings.mail_server == server
    assert PASSWORD not in repr(settings)


def test_origins_are_listed_with_commas() -> None:
    given = "https://app.example, http://localhost:3000,http://[::1]:8080,capacitor://localhost"
    settings = load_settings({"CORS_ORIGINS": given})
    assert settings.cors_origins == set(given.replace(" ", "").split(","))


@pytest.mark.parametrize("sender", ["a@b", "J. Doe <a@b.example>", '"Éditions, B" <a@b.example>'])
def test_mail_senders(sender: str) -> None:
    assert load_settings({"MAIL_FROM": sender}).mail_from == sender


def test_an_empty_variable_is_one_not_set() -> None:
    assert load_settings(dict.fromkeys(VARIABLES, "")) == load_settings({})


def test_secrets_are_not_shown() -> None:
    settings = load_settings({**EXTERNAL, "DATABASE_URL": f"postgresql://u:{PASSWORD}@h/n"})
    assert SECRET_KEY not in repr(settings)
    assert PASSWORD not in repr(settings)


def test_readme_lists_every_variable_and_no_other() -> None:
    readme = (Path(__file__).parents[1] / "README.md").read_text()
    table = readme.partition("## Configuration")[2].partition("\n## ")[0]
    listed = set(re.findall(r"`([A-Z][A-Z_]+)`", table))
    assert listed - {"PATH", "PG_BINDIR", "SSL_CERT_FILE"} == set(VARIABLES)


async def test_such_a_password_signs_in_to_postgresql(
    conn: "asyncpg.Connection[asyncpg.Record]", database: Database
) -> None:
    """The same password, taken from a URL in either form, opens a real connection."""
    host, port = database.hosts[0]
    name = database.name
    role = f"role_{name[-12:]}"
    await conn.execute(f"create role \"{role}\" login password '{PASSWORD}'")
    try:
        for password in (PASSWORD, ESCAPED):
            url = f"postgresql://{role}:{password}@{host}:{port}/{name}"
            parsed = load_settings({**EXTERNAL, "DATABASE_URL": url}).database
            assert parsed is not None
            other = await asyncpg.connect(**parsed.asyncpg_arguments())
            assert await other.fetchval("select current_user") == role
            await other.close()
    finally:
        await conn.execute(f'drop role "{role}"')
