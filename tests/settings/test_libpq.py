"""DATABASE_URL means to both drivers what libpq reads in it, as psycopg's parser shows."""

import dataclasses
import re
import ssl
from functools import partial
from pathlib import Path
from urllib.parse import parse_qs, quote, urlsplit

import asyncpg
import hypothesis
import psycopg
import pytest
from hypothesis import strategies as st
from psycopg import pq
from psycopg.conninfo import conninfo_to_dict

from service.settings import Database, SettingsError, load_settings
from service.settings.urls import LIBPQ_OPTIONS
from tests.support.clients import SECRET_KEY, StartApp
from tests.support.refusing import refusing
from tests.support.tls import self_signed


def read(url: str) -> Database:
    database = load_settings({"SECRET_KEY": SECRET_KEY, "DATABASE_URL": url}).database
    assert database is not None
    return database


def refusal(url: str) -> str:
    with pytest.raises(SettingsError) as raised:
        read(url)
    message = str(raised.value)
    assert "\n" not in message
    return message


def meaning(url: str) -> dict[str, str]:
    """Return libpq's reading, with what libpq itself would add when it connects."""
    theirs = {name: str(value) for name, value in conninfo_to_dict(url).items() if value}
    hosts, ports = theirs["host"].split(","), theirs.get("port", "").split(",")
    ports = ports * len(hosts) if len(ports) == 1 else ports
    theirs["port"] = ",".join(
        str(int(port)) if port.isdecimal() else port or "5432" for port in ports
    )
    return {"dbname": theirs["user"], **theirs}


def ours_to_libpq(database: Database) -> dict[str, str]:
    """Return what psycopg is given for a URL without TLS options, less our own defaults."""
    arguments = {name: value for name, value in database.libpq_arguments().items() if value}
    if arguments["application_name"] == "shinkei":
        del arguments["application_name"]
    return arguments


def ours_to_asyncpg(database: Database) -> dict[str, str]:
    """Return the same from what asyncpg is given."""
    given = database.asyncpg_arguments()
    password = given["password"]
    query = parse_qs(urlsplit(given["dsn"]).query, strict_parsing=True)
    options = {name: values[-1] for name, values in query.items()}
    if options["application_name"] == "shinkei":
        del options["application_name"]
    arguments = {
        "host": ",".join(given["host"]),
        "port": ",".join(map(str, given["port"])),
        "user": given["user"],
        "dbname": given["database"],
        "password": password() if password else "",
        **options,
    }
    return {name: value for name, value in arguments.items() if value}


READ_ALIKE = Path(__file__).with_name("libpq_uris.txt").read_text().split()


@pytest.mark.parametrize("url", READ_ALIKE)
def test_uri_is_read_as_libpq_reads_it(url: str) -> None:
    database, theirs = read(url), meaning(url)
    assert ours_to_libpq(database) == theirs
    assert ours_to_asyncpg(database) == theirs


@pytest.mark.parametrize(
    "option",
    [
        "connect_timeout=3",
        "keepalives=1",
        "keepalives_idle=9",
        "keepalives_interval=9",
        "keepalives_count=9",
        "tcp_user_timeout=9",
        "sslcompression=0",
        "channel_binding=prefer",
        "channel_binding=disable",
        "gssencmode=prefer",
        "gssencmode=disable",
        "gssdelegation=0",
        "gsslib=gssapi",
        "load_balance_hosts=disable",
        "sslsni=1",
        "sslcertmode=allow",
        "client_encoding=utf8",
        "client_encoding=UTF-8",
        "replication=false",
        "min_protocol_version=3.0",
        "max_protocol_version=latest",
        "hostaddr=",
        "passfile=",
        "requirepeer=",
    ],
)
def test_option_that_changes_nothing_is_left_out(option: str) -> None:
    conninfo_to_dict(f"postgresql://u@h/n?{option}")
    assert read(f"postgresql://u@h/n?{option}") == read("postgresql://u@h/n")


@pytest.mark.parametrize(
    "option",
    [
        "hostaddr=192.0.2.1",
        "passfile=/p",
        "service=s",
        "servicefile=/s",
        "require_auth=scram-sha-256",
        "requirepeer=postgres",
        "sslcrldir=/d",
        "sslkeylogfile=/k",
        "scram_client_key=x",
        "scram_server_key=x",
        "oauth_issuer=x",
        "oauth_client_id=x",
        "oauth_client_secret=x",
        "oauth_scope=x",
        "channel_binding=require",
        "gssencmode=require",
        "gssdelegation=1",
        "load_balance_hosts=random",
        "sslsni=0",
        "sslcertmode=disable",
        "sslcertmode=require",
        "client_encoding=latin1",
        "replication=database",
        "min_protocol_version=3.2",
        "sslmode=",
        "sslmode=verify",
        "sslnegotiation=tls",
        "ssl_min_protocol_version=SSLv3",
        "target_session_attrs=write",
        "ssl=require",
        "schema=public",
        "pgbouncer=true",
    ],
)
def test_option_that_a_driver_cannot_honour_is_refused_by_name(option: str) -> None:
    name = option.partition("=")[0]
    message = refusal(f"postgresql://u:p4ss@h/n?{option}")
    assert re.match(rf"DATABASE_URL: (option |unknown option )?{name}\b", message), message
    assert "p4ss" not in message


def test_every_option_of_libpq_is_either_kept_ignored_or_refused_on_purpose() -> None:
    theirs = {option.keyword.decode() for option in pq.Conninfo.get_defaults()}
    assert theirs <= LIBPQ_OPTIONS


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("postgresql://u@h/n?sslrootcert=system&sslmode=require", "sslmode: expected verify-full"),
        ("postgresql://u@h/n?sslnegotiation=direct", "sslmode: expected one of require"),
        ("postgresql://u@h/n?sslnegotiation=direct&sslmode=allow", "sslmode: expected one of req"),
        ("postgresql://u@%40pg/n", "abstract Unix sockets are not supported"),
        ("postgresql://u@h1,h2/n?host=h", "expected one port, or one for each host"),
        ("postgresql://u@h1,h2/n?port=1,2,3", "expected one port, or one for each host"),
        ("postgresql://u@h:65536/n", "expected a port from 1 to 65535"),
        ("postgresql://u@h/n?port=x", "expected a port from 1 to 65535"),
        ("postgresql://u@h/n?port=%2B1", "expected a port from 1 to 65535"),
        ("postgresql://u@h/n?host=", "expected postgresql://"),
        ("postgresql://u@h1,,h2/n", "expected postgresql://"),
        ("postgresql://u@h/n?user=", "expected postgresql://"),
        ("postgresql://h/n?application_name=a@b", "expected postgresql://"),
        ("postgresql://u:1/ss@h/n?a=b", "expected postgresql://"),
        ("postgresql://u:12/ss@h/n", "expected postgresql://"),
        ("postgresql://u:/@h/n", "expected postgresql://"),
        ("postgresql://u@h/n?a%0Ab=c", "unknown option"),
        ("postgresql://u@[::1/n", "expected postgresql://"),
        ("postgresql://u@[]/n", "expected postgresql://"),
        ("postgresql://u@[::1]x/n", "expected postgresql://"),
        ("postgresql://u@h/n?application_name", "expected postgresql://"),
        ("postgresql://u@h/n?application_name=a=b", "expected postgresql://"),
        ("postgresql://u@h/n?&application_name=a", "expected postgresql://"),
        ("postgresql://u@h/%zz", "expected postgresql://"),
        ("postgresql://u@h/n%00", "expected postgresql://"),
        ("postgresql://u:p%00@h/n", "expected postgresql://"),
        ("postgresql://u:p%FF@h/n", "expected postgresql://"),
        ("postgresql://u@h/n?application_name=%FF", "expected postgresql://"),
        ("POSTGRESQL://u@h/n", "expected postgresql://"),
        ("postgresql+asyncpg://u@h/n", "expected postgresql://"),
        ("host=h user=u", "expected postgresql://"),
    ],
)
def test_uri_that_cannot_be_used_is_refused(url: str, reason: str) -> None:
    assert refusal(url).startswith(f"DATABASE_URL: {reason}")


@pytest.mark.parametrize(
    ("url", "password"),
    [
        ("postgresql://u:p@ss@h:5433/n", "p@ss"),
        ("postgresql://u:p@ss@word@h:5433/n", "p@ss@word"),
        ("postgresql://u:p/ss@h:5433/n", "p/ss"),
        ("postgresql://u:p@ss/w:o?r#d@h:5433/n", "p@ss/w:o?r#d"),
        ("postgresql://u:p#s@s@h:5433/n", "p#s@s"),
        ("postgresql://u:p@ss#w/x@h:5433/n", "p@ss#w/x"),
        ("postgresql://u:p@ss?word@h:5433/n", "p@ss?word"),
        ("postgresql://u:100%@h:5433/n", "100%"),
        ("postgresql://u:100%zz@h:5433/n", "100%zz"),
        ("postgresql://u:%41%@h:5433/n", "%41%"),
        ("postgresql://u:p@%41@h:5433/n", "p@%41"),
        ("postgresql://u:p@[x]y@h:5433/n", "p@[x]y"),
        ("postgresql://u:@@h:5433/n", "@"),
        ("postgresql://u:é/@h:5433/n", "é/"),
        ("postgresql://u:p@ss@h:5433/n?application_name=x", "p@ss"),
        ("postgresql://u%40corp:p@ss@h:5433/n", "p@ss"),
        ("postgresql://u:p%40ss@h:5433/a database", "p@ss"),
        ("postgresql://u:p%40ss@h:5433/n?application_name=two words", "p@ss"),
        ("postgresql://u:two words@h:5433/n", "two words"),
    ],
)
def test_password_works_unescaped_if_the_whole_is_no_uri(url: str, password: str) -> None:
    database = read(url)
    assert database.read_password() == password
    assert database.hosts == (("h", 5433),)
    assert database.user in ("u", "u@corp")


# Pieces of URIs, and characters that divide them or need escaping.
CHARACTERS = "ab1:@/?#%&=+,[]. é"
PIECE = st.text(CHARACTERS, max_size=4) | st.sampled_from(
    ["%40", "%2F", "%2C", "%25", "%zz", "%C3%A9", "h", "[::1]", "5433", ":5433", "/run/pg"]
)
# A "+" is no space in them.
ESCAPED = st.text(CHARACTERS, min_size=1).map(partial(quote, safe="+"))
TEXTS = ["user", "password", "dbname", "application_name", "options"]


@st.composite
def urls(
    draw: st.DrawFn, piece: st.SearchStrategy[str], host: st.SearchStrategy[str], options: list[str]
) -> str:
    user = draw(st.just("u") | piece)
    password = draw(st.just("") | piece.map(":{}".format))
    hosts = draw(st.lists(host, min_size=1, max_size=3).map(",".join))
    name = draw(st.just("/n") | piece.map("/{}".format))
    option = st.tuples(st.sampled_from(options), piece).map("=".join)
    query = draw(st.lists(option, max_size=3).map("&".join))
    return f"postgresql://{user}{password}@{hosts}{name}{'?' * bool(query)}{query}".strip()


@pytest.mark.property
@hypothesis.given(urls(ESCAPED, st.sampled_from(["h", "h:5433", "[::1]", "%2Frun:5433"]), TEXTS))
def test_any_uri_whose_parts_are_escaped_is_read_as_libpq_reads_it(url: str) -> None:
    database = read(url)
    assert ours_to_libpq(database) == ours_to_asyncpg(database) == meaning(url)


def is_usable(theirs: dict[str, str]) -> bool:
    """Return whether the service, too, could use what libpq reads."""
    hosts, ports = theirs["host"].split(","), theirs["port"].split(",")
    names = all(host and not host.startswith("@") for host in hosts)
    return names and len(ports) == len(hosts) and all(map(str.isdecimal, ports))


@pytest.mark.property
@hypothesis.given(urls(PIECE, st.just("h") | PIECE, ["host", "port", *TEXTS]))
def test_any_uri_is_read_as_libpq_reads_it_or_refused(url: str) -> None:
    """Only a URI whose hosts and ports cannot be such may be read in another way."""
    try:
        database = read(url)
    except SettingsError:
        database = None
    try:
        theirs = meaning(url)
    except (psycopg.ProgrammingError, UnicodeDecodeError, KeyError):
        return
    hosts = re.match(r"postgresql://(?:[^@/]*@)?([^/?]*)", url)
    assert hosts
    if re.search(r"[@#\[\] ]|:(?!\d*(,|$))", hosts[1].replace("[::1]", "")):
        return
    assert (database is not None) == is_usable(theirs)
    if database is not None:
        assert ours_to_libpq(database) == ours_to_asyncpg(database) == theirs


def with_password(password: str) -> str:
    return f"postgresql://u:{password}@h:5433/n"


def makes_no_uri(password: str) -> bool:
    """Return whether libpq cannot read the URL with this password."""
    try:
        conninfo_to_dict(with_password(password))
    except UnicodeDecodeError:
        return False
    except psycopg.ProgrammingError:
        return True
    return False


@pytest.mark.property
@hypothesis.given(st.text("ab1:@/?#%&+,[]é", min_size=1).filter(makes_no_uri))
def test_unescaped_password_is_read_whole_if_libpq_reads_no_uri(password: str) -> None:
    """Without "=", which could make an option of it: an unknown option is refused by name."""
    database = read(with_password(password))
    assert (database.read_password(), database.hosts) == (password, (("h", 5433),))


async def test_options_reach_the_server_through_both_drivers(database: Database) -> None:
    given = (*database.options, ("application_name", "a+b c"), ("options", "-c work_mem=8765kB"))
    database = dataclasses.replace(database, options=given)
    conn = await asyncpg.connect(**database.asyncpg_arguments())
    ask = "select current_setting('work_mem'), current_setting('application_name')"
    assert tuple(await conn.fetchrow(ask)) == ("8765kB", "a+b c")
    await conn.close()
    with psycopg.connect(**database.libpq_arguments()) as other:
        assert other.execute(ask).fetchone() == ("8765kB", "a+b c")


async def test_all_connections_of_the_service_bear_the_application_name_of_the_url(
    start_app: StartApp, database: Database, conn: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    options = (*database.options, ("application_name", "accounts"))
    await start_app(database=dataclasses.replace(database, options=options))
    rows = await conn.fetch(
        """
        select distinct application_name from pg_stat_activity
        where datname = current_database() and pid <> pg_backend_pid()
            and backend_type = 'client backend'
        """
    )
    assert [row["application_name"] for row in rows] == ["accounts"]


async def test_client_certificate_is_sent_to_a_server_that_the_system_trusts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pem = tmp_path / "server.pem"
    server = self_signed(pem)
    server.load_verify_locations(pem)
    server.verify_mode = ssl.CERT_REQUIRED
    monkeypatch.setenv("SSL_CERT_FILE", str(pem))
    with refusing("57P03", tls=server) as port:
        tls = f"sslmode=verify-full&sslcert={pem}&sslkey={pem}&ssl_min_protocol_version=TLSv1.3"
        database = read(f"postgresql://u:p@127.0.0.1:{port}/n?{tls}")
        with pytest.raises(asyncpg.CannotConnectNowError):
            await asyncpg.connect(**database.asyncpg_arguments())


async def test_password_is_looked_up_where_libpq_looks_if_the_url_has_none(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGPASSWORD", database.password)
    without = dataclasses.replace(database, password="")
    conn = await asyncpg.connect(**without.asyncpg_arguments())
    await conn.close()
    psycopg.connect(**without.libpq_arguments()).close()
