"""Connections to PostgreSQL and the mail server: URLs, parts and special characters."""

from pathlib import Path

import asyncpg
import pytest

from service.settings import Database, MailServer, load_settings
from tests.support.clients import SECRET_KEY

PASSWORD = "p@ss#w%rd:/?"
ESCAPED = "p%40ss%23w%25rd%3A%2F%3F"
EXTERNAL = {"SECRET_KEY": SECRET_KEY}


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
def test_password_may_contain_any_characters(environ: dict[str, str]) -> None:
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
def test_urls_are_parsed_like_libpq(
    url: str, hosts: tuple[tuple[str, int], ...], name: str, options: dict[str, str]
) -> None:
    database = load_settings({**EXTERNAL, "DATABASE_URL": url}).database
    assert database is not None
    assert (database.hosts, database.name, dict(database.options)) == (hosts, name, options)
    assert database.user == "ada"


def test_address_has_ipv6_hosts_in_brackets() -> None:
    url = "postgresql://u@[::1]:6,db.example,%2Frun%2Fpg/n"
    database = load_settings({**EXTERNAL, "DATABASE_URL": url}).database
    assert database is not None
    assert database.address == "[::1]:6,db.example:5432,/run/pg:5432"


def test_parts_can_set_several_hosts_and_tls() -> None:
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


def test_password_file_is_read_again_after_rotation(tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text("first\n")
    parts = {"DB_HOST": "h", "DB_NAME": "n", "DB_USER": "u", "DB_PASS_FILE": str(file)}
    database = load_settings({**EXTERNAL, **parts}).database
    assert database is not None
    assert database.read_password() == "first"
    file.write_text("second\n")
    assert database.read_password() == "second"


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
def test_mail_url_is_parsed(url: str, server: MailServer) -> None:
    settings = load_settings({"MAIL_URL": url})
    assert settings.mail_server == server
    assert PASSWORD not in repr(settings)


async def test_password_with_special_characters_connects_to_postgresql(
    conn: "asyncpg.Connection[asyncpg.Record]", database: Database
) -> None:
    """The password works whether or not it is escaped in the URL."""
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
