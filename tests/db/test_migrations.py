"""Migrations: applied, rolled back, run concurrently, after a crash; never edited once merged."""

import dataclasses
import hashlib
import secrets
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import Any

import asyncpg
import psycopg
import pytest

from service.db import migrations
from service.exceptions import StartError
from service.http.fields import fold_email
from service.settings import Database
from tests.support.factories import PASSWORD
from tests.support.locks import WAITING
from tests.support.logbook import logged
from tests.support.pgbouncer import behind_pgbouncer, waiting_clients
from tests.support.processes import connect, started
from tests.support.refusing import refusing
from tests.support.tls import self_signed
from tests.support.waiting import DEADLINE_S, eventually_blocking

HERE = Path(__file__).parent
# In this database; tests beside this one have others.
HELD_LOCKS = """
    select pid from pg_locks join pg_database on pg_database.oid = database
    where locktype = 'advisory' and datname = current_database()
"""
# Everything that migrating connects for, as a function of the database and how long to wait for it.
ACTIONS = [
    migrations.apply_pending,
    migrations.list_status,
    lambda database, wait_s: migrations.roll_back(database, 1, wait_s),
]


def schema_of(database: Database) -> list[tuple[Any, ...]]:
    """Columns, constraints and indexes of our own tables."""
    with connect(database) as conn:
        rows: list[tuple[Any, ...]] = conn.execute(
            """
            select table_name, column_name, data_type, is_nullable, column_default
            from information_schema.columns
            where table_schema = 'public' and table_name !~ 'yoyo'
            union all
            select conrelid::regclass::text, conname, pg_get_constraintdef(oid), '', ''
            from pg_constraint
            where connamespace = 'public'::regnamespace and conrelid::regclass::text !~ 'yoyo'
            union all
            select tablename, indexname, indexdef, '', ''
            from pg_indexes where schemaname = 'public' and tablename !~ 'yoyo'
            order by 1, 2, 3
            """
        ).fetchall()
    return rows


@pytest.mark.slow
def test_migrations_can_be_rolled_back_and_reapplied(empty_database: Database) -> None:
    ids = migrations.known_migrations()
    assert migrations.apply_pending(empty_database) == ids
    head = schema_of(empty_database)
    for id_ in reversed(ids):
        assert migrations.roll_back(empty_database, 1) == [id_]
    assert schema_of(empty_database) == []
    assert migrations.apply_pending(empty_database) == ids
    assert schema_of(empty_database) == head
    assert migrations.apply_pending(empty_database) == []


def test_migrations_are_safe_to_run_twice(database: Database) -> None:
    """A migration runs again if a crash comes before it is recorded as applied."""
    before = schema_of(database)
    with connect(database) as conn:
        conn.execute("delete from _yoyo_migration")
    assert migrations.apply_pending(database) == migrations.known_migrations()
    assert schema_of(database) == before


def test_migrations_declare_a_rollback_lock_timeout_and_predecessor() -> None:
    ids = migrations.known_migrations()
    for previous, id_ in zip([None, *ids], ids, strict=False):
        sql = (migrations.migrations_dir() / f"{id_}.sql").read_text()
        assert (migrations.migrations_dir() / f"{id_}.rollback.sql").is_file()
        assert "set local lock_timeout" in sql
        assert "-- transactional:" not in sql, "the lock is held by the migration's transaction"
        assert previous is None or f"-- depends: {previous}\n" in sql


def test_merged_migrations_are_never_edited() -> None:
    """migrations.sha256 is written when a migration is merged; a change needs a new one."""
    recorded = dict(
        line.split("  ")[::-1] for line in (HERE / "migrations.sha256").read_text().splitlines()
    )
    assert recorded == {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in migrations.migrations_dir().glob("*.sql")
    }


def test_concurrent_replicas_apply_each_migration_once(empty_database: Database) -> None:
    with ThreadPoolExecutor(8) as executor:
        applied = list(
            executor.map(lambda _: migrations.apply_pending(empty_database, DEADLINE_S), range(8))
        )
    assert sorted(chain(*applied)) == migrations.known_migrations()


def test_concurrent_rollbacks_roll_back_each_migration_once(database: Database) -> None:
    with ThreadPoolExecutor(2) as executor:
        done = list(executor.map(lambda _: migrations.roll_back(database, 2, DEADLINE_S), range(2)))
    assert sorted(chain(*done)) == migrations.known_migrations()[-4:]


@pytest.mark.slow
def test_migrations_at_once_share_the_only_connection_of_pgbouncer(
    empty_database: Database,
) -> None:
    with (
        behind_pgbouncer(empty_database, default_pool_size=1) as through,
        ThreadPoolExecutor(2) as executor,
        connect(through) as other,
    ):
        with other.transaction():
            other.execute("select 1")
            both = [executor.submit(migrations.apply_pending, through, 60) for _ in range(2)]
            eventually_blocking(lambda: waiting_clients(through) == 2)
        applied = chain(*(one.result(DEADLINE_S) for one in both))
        assert sorted(applied) == migrations.known_migrations()
        assert migrations.roll_back(through, 99) == migrations.known_migrations()[::-1]
        assert other.execute(HELD_LOCKS).fetchall() == []


@pytest.fixture
def write_migrations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Return a function that replaces the migrations."""
    monkeypatch.setattr(migrations, "migrations_dir", lambda: tmp_path)

    def write(**sql: str) -> None:
        for name, text in sql.items():
            (tmp_path / f"{name}.sql").write_text(text)

    return write


def test_killed_migration_does_not_block_the_next(empty_database: Database, tmp_path: Path) -> None:
    """The killed process holds the lock in an open transaction."""
    (tmp_path / "0001.half.sql").write_text("create table half (id int); lock table gate")
    script = """
import sys
from pathlib import Path
from service.db import migrations
from service.settings import Database
migrations.migrations_dir = lambda: Path(sys.argv[6])
migrations.apply_pending(Database(((sys.argv[1], int(sys.argv[2])),), *sys.argv[3:6]))
"""
    host, port = empty_database.hosts[0]
    address = [host, str(port), empty_database.name, empty_database.user, empty_database.password]
    # In a transaction, pg_stat_activity stays as it was when it was first read.
    with connect(empty_database) as gate, connect(empty_database) as other:
        gate.execute("create table gate ()")
        with gate.transaction():
            gate.execute("lock table gate")
            with started(sys.executable, "-c", script, *address, str(tmp_path)) as killed:
                eventually_blocking(lambda: other.execute(WAITING).fetchone() == (1,))
                killed.kill()
        assert migrations.apply_pending(empty_database) == migrations.known_migrations()
        assert gate.execute("select to_regclass('half')").fetchone() == (None,)


def test_waiting_for_another_process_is_logged_and_can_be_stopped(empty_database: Database) -> None:
    stop = threading.Event()
    with connect(empty_database) as other, logged() as events, ThreadPoolExecutor(1) as executor:
        other.execute("select pg_advisory_lock(%s)", [migrations.ADVISORY_LOCK_KEY])
        waiting = executor.submit(migrations.apply_pending, empty_database, stop=stop)
        try:
            eventually_blocking(lambda: events)
        finally:
            stop.set()
        assert events[0]["event"] == "waiting for another process to finish migrating"
        assert events[0]["holder_pid"] == other.info.backend_pid
        with pytest.raises(StartError, match="^stopped before all migrations were applied"):
            waiting.result(DEADLINE_S)


def test_limits_of_a_role_or_database_do_not_apply_to_migrations(
    empty_database: Database, write_migrations: Callable[..., None]
) -> None:
    limits = {
        "default_transaction_isolation": "serializable",
        "idle_in_transaction_session_timeout": "500ms",
        "lock_timeout": "400ms",
        "statement_timeout": "500ms",
        "transaction_timeout": "500ms",
    }
    with connect(empty_database) as conn:
        known = {row[0] for row in conn.execute("select name from pg_settings")}
        for name in limits.keys() & known:
            conn.execute(f"alter database {empty_database.name} set {name} = '{limits[name]}'")
    seen = "select name, setting from pg_settings where setting <> '0' and name in "
    write_migrations(
        slow=f"select pg_sleep(0.6); create table seen as {seen}{(*limits, 'transaction_isolation')}"
    )
    assert migrations.apply_pending(empty_database) == ["slow"]
    with connect(empty_database) as conn:
        assert dict(conn.execute("select name, setting from seen")) == {
            "default_transaction_isolation": "serializable",
            "lock_timeout": "5000",
            "transaction_isolation": "read committed",
        }


def test_one_connection_is_enough_to_migrate(
    empty_database: Database, write_migrations: Callable[..., None]
) -> None:
    write_migrations(first="create table first (id int)")
    role = f"shinkei_role_{secrets.token_hex(6)}"
    with connect(empty_database) as conn:
        conn.execute(f"create role {role} login password '{PASSWORD}' connection limit 1")
        conn.execute(f"grant create on schema public to {role}")
        limited = dataclasses.replace(empty_database, user=role, password=PASSWORD)
        assert migrations.apply_pending(limited, DEADLINE_S) == ["first"]
        conn.execute(f"drop owned by {role}; drop role {role}")


@pytest.fixture
def refuse_once(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """Refuse libpq's first connection, as if others took the last ones just before."""
    connect_later, refused = psycopg.connect, list[bool]()

    def refuse_first(**arguments: Any) -> Any:
        if refused:
            return connect_later(**arguments)
        refused.append(True)
        raise psycopg.OperationalError("FATAL: sorry, too many clients already")

    monkeypatch.setattr(psycopg, "connect", refuse_first)


@pytest.mark.usefixtures("refuse_once")
def test_connection_refused_after_the_wait_is_tried_again(database: Database) -> None:
    assert migrations.apply_pending(database, DEADLINE_S) == []


@pytest.mark.usefixtures("refuse_once")
def test_connection_refused_after_the_last_wait_is_reported(database: Database) -> None:
    with pytest.raises(StartError, match="^cannot connect to PostgreSQL .*: FATAL: sorry, too"):
        migrations.apply_pending(database)


@pytest.mark.parametrize(
    ("sqlstate", "message", "reason"),
    [
        ("53300", "sorry, too many clients already", "the server has no connections left"),
        ("57P03", "the database system is starting up", "the server is starting up or shutting"),
        ("57P03", "the database system is shutting down", "the server is starting up or shutting"),
        (
            "57P03",
            "the database system is not accepting connections",
            "the server is starting up or shutting",
        ),
    ],
)
@pytest.mark.parametrize("act", ACTIONS)
def test_migrating_waits_for_a_server_that_has_no_connection_for_it(
    act: Callable[[Database, float], object], sqlstate: str, message: str, reason: str
) -> None:
    with refusing(sqlstate, message) as port, pytest.raises(StartError) as raised:
        act(Database((("127.0.0.1", port),), "n", "u", "hush"), 0.1)
    assert str(raised.value).startswith(
        f"cannot connect to PostgreSQL at 127.0.0.1:{port}, database n, as user u: {reason}"
    )
    assert str(raised.value).endswith("(tried for 0.1 s, DB_CONNECT_TIMEOUT_S)")


@pytest.mark.parametrize(
    ("sqlstate", "options", "reason"),
    [
        ("28P01", (), "the server rejected the user or password"),
        ("3D000", (), "the database does not exist"),
        (
            "53300",
            (("sslmode", "require"),),
            "the server does not offer TLS, which sslmode requires",
        ),
    ],
)
@pytest.mark.parametrize("act", ACTIONS)
def test_migrating_says_at_once_why_it_cannot_connect(
    act: Callable[[Database, float], object], sqlstate: str, options: Any, reason: str
) -> None:
    with refusing(sqlstate) as port, pytest.raises(StartError) as raised:
        act(Database((("127.0.0.1", port),), "n", "u", "hush", options=options), DEADLINE_S)
    assert str(raised.value).endswith(f"as user u: {reason}")


def test_migrating_says_that_the_certificate_is_not_trusted(tmp_path: Path) -> None:
    context = self_signed(tmp_path / "server.pem")
    self_signed(tmp_path / "another.pem")
    options = (("sslmode", "verify-full"), ("sslrootcert", str(tmp_path / "another.pem")))
    with (
        refusing("57P03", tls=context) as port,
        pytest.raises(StartError, match="the server's TLS certificate is not trusted$"),
    ):
        migrations.apply_pending(
            Database((("127.0.0.1", port),), "n", "u", options=options), DEADLINE_S
        )


def test_lost_connection_names_the_migration(
    empty_database: Database, write_migrations: Callable[..., None]
) -> None:
    write_migrations(lost="select pg_terminate_backend(pg_backend_pid())")
    with pytest.raises(StartError, match="^cannot apply lost: terminating connection due to"):
        migrations.apply_pending(empty_database)


def test_migration_that_cannot_be_recorded_changes_nothing(
    empty_database: Database, write_migrations: Callable[..., None]
) -> None:
    refuse = "alter table _yoyo_migration add check (migration_id <> 'half')"
    write_migrations(half=f"create table half (id int); {refuse}")
    with pytest.raises(StartError, match="^cannot apply half: "):
        migrations.apply_pending(empty_database)
    with connect(empty_database) as conn:
        assert conn.execute("select to_regclass('half')").fetchone() == (None,)


def test_error_names_the_failed_migration(
    empty_database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "0001.fine.sql").write_text("create table fine (id int)")
    (tmp_path / "0002.broken.sql").write_text("create table broken (id nonsense)")
    monkeypatch.setattr(migrations, "migrations_dir", lambda: tmp_path)
    with pytest.raises(StartError) as raised:
        migrations.apply_pending(empty_database)
    assert str(raised.value) == 'cannot apply 0002.broken: type "nonsense" does not exist'
    assert migrations.list_status(empty_database) == [("0001.fine", True), ("0002.broken", False)]


def test_migration_skipped_by_yoyo_is_an_error(
    empty_database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "0001.orphan.sql").write_text("-- depends: 0000.missing\nselect 1")
    monkeypatch.setattr(migrations, "migrations_dir", lambda: tmp_path)
    with pytest.raises(StartError, match=r"0001\.orphan|dependencies"):
        migrations.apply_pending(empty_database)


def test_installation_without_migrations_is_an_error(
    empty_database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(migrations, "migrations_dir", lambda: tmp_path)
    with pytest.raises(StartError, match="this installation is incomplete"):
        migrations.apply_pending(empty_database)


def test_ips_survive_the_renaming_of_their_columns(database: Database) -> None:
    ips = """
        select host(ip) from sessions union all select host(ip) from audit_events
    """
    with connect(database) as conn:
        conn.execute(
            """
            with account as (
                insert into users (id, email, email_folded, name)
                values (gen_random_uuid(), 'a@example.com', 'a@example.com', '')
                returning id
            )
            insert into sessions (id, user_id, expires_at, ip)
            select gen_random_uuid(), id, now(), '192.0.2.1' from account
            """
        )
        conn.execute(
            """
            insert into audit_events (id, action, ip)
            values (gen_random_uuid(), 'sign_in', '192.0.2.2')
            """
        )
    while migrations.roll_back(database, 1) != ["0018.name-the-ip"]:
        pass
    with connect(database) as conn:
        before = conn.execute(ips.replace("ip)", "address)")).fetchall()
    migrations.apply_pending(database)
    with connect(database) as conn:
        after = conn.execute(ips).fetchall()
    assert before == after == [("192.0.2.1",), ("192.0.2.2",)]


def test_sessions_that_ended_together_stay_ended_without_epochs(database: Database) -> None:
    with connect(database) as conn:
        conn.execute(
            """
            with account as (
                insert into users (id, email, email_folded, name, session_epoch)
                values (gen_random_uuid(), 'a@example.com', 'a@example.com', '', 2)
                returning id
            )
            insert into sessions (id, user_id, expires_at, epoch, user_agent)
            select gen_random_uuid(), id, now(), n, n::text from account, generate_series(1, 2) n
            """
        )
    while migrations.roll_back(database, 1) != ["0019.number-session-epochs"]:
        pass
    with connect(database) as conn:
        assert conn.execute("select user_agent from sessions").fetchall() == [("2",)]


def test_new_extended_statistics_are_filled_immediately(database: Database) -> None:
    """The migration fills them even if the accounts were analyzed before."""
    while migrations.roll_back(database, 1) != ["0014.index-users-by-address"]:
        pass
    with connect(database) as conn:
        conn.execute(
            """
            insert into users (id, email, email_folded, name, role, status, suspension_reason)
            select gen_random_uuid(), n || '@example.com', n || '@example.com', '',
                   case when n % 10 = 0 then 'support' else 'user' end,
                   case when n % 10 = 0 then 'suspended' else 'active' end,
                   case when n % 10 = 0 then 'x' end
            from generate_series(1, 1000) n
            """
        )
        conn.execute("analyze users")
        migrations.apply_pending(database)
        known = conn.execute("select most_common_vals from pg_stats_ext").fetchone()
    assert known is not None
    assert sorted(known[0]) == [["support", "suspended"], ["user", "active"]]


def test_deletions_in_progress_are_migrated_with_who_requested_them(database: Database) -> None:
    while migrations.roll_back(database, 1) != ["0020.record-who-acts"]:
        pass
    with connect(database) as conn:
        conn.execute(
            """
            with account as (
                insert into users (id, email, email_folded, name, status, purge_at)
                select gen_random_uuid(), who, who, '', 'deleting', now() from
                unnest(array['admin', 'owner', 'owner last']) who
                returning id, email
            )
            insert into audit_events (id, occurred_at, action, subject_id, actor_id)
            select gen_random_uuid(), now() - hours * interval '1 hour', 'user.delete', account.id,
                   case when who = 'owner' then account.id else gen_random_uuid() end
            from account
            join (values ('admin', 1, 'admin'), ('owner', 1, 'owner'),
                         ('owner last', 2, 'admin'), ('owner last', 1, 'owner'))
                events (email, hours, who) using (email)
            """
        )
    migrations.apply_pending(database)
    with connect(database) as conn:
        rows = conn.execute("select email, deleted_by_admin from users order by email").fetchall()
    assert rows == [("admin", True), ("owner", False), ("owner last", False)]


ADD_FOLDED = """
    insert into users (id, email, email_folded, name) values (gen_random_uuid(), %s, %s, '')
"""
# The form in which migration 0001 says that emails are compared.
EMAILS = {
    "Ada@straße.example": "ada@strasse.example",
    "γιώργος@κόσμος.example": "γιώργοσ@κόσμοσ.example",
    "Weiß@weiß.example": "weiss@weiss.example",
    "weiß@plain.example": "weiss@plain.example",
    "mıke@plain.example": "mıke@plain.example",
}


def test_emails_are_migrated_to_the_form_that_the_service_compares(database: Database) -> None:
    while migrations.roll_back(database, 1) != ["0021.tell-domains-apart"]:
        pass
    with connect(database) as conn:
        for email, folded in EMAILS.items():
            conn.execute(ADD_FOLDED, (email, folded))
    migrations.apply_pending(database)
    with connect(database) as conn:
        rows = dict(conn.execute("select email, email_folded from users").fetchall())
    assert rows == {email: fold_email(email) for email in EMAILS}


def test_previous_version_cannot_register_an_email_twice(database: Database) -> None:
    with connect(database) as conn:
        conn.execute(ADD_FOLDED, ("ada@straße.example", fold_email("ada@straße.example")))
        with pytest.raises(psycopg.errors.UniqueViolation, match="users_email_folded_key"):
            conn.execute(ADD_FOLDED, ("ada@straße.example", "ada@strasse.example"))


def test_emails_that_the_previous_version_cannot_tell_apart_survive_a_rollback(
    database: Database,
) -> None:
    emails = ["ada@straße.example", "ada@strasse.example", "bob@κόσμος.example"]
    with connect(database) as conn:
        for email in emails:
            conn.execute(ADD_FOLDED, (email, fold_email(email)))
    while migrations.roll_back(database, 1) != ["0021.tell-domains-apart"]:
        pass
    with connect(database) as conn:
        rows = dict(conn.execute("select email, email_folded from users").fetchall())
    assert rows == {
        "ada@straße.example": "ada@straße.example",
        "ada@strasse.example": "ada@strasse.example",
        "bob@κόσμος.example": "bob@κόσμοσ.example",
    }


# What transactions of the service do first, and what they do after that.
TRANSACTIONS = {
    "a link is used": (
        "select from action_tokens join users on users.id = user_id",
        "update users set name = 'Ada'",
    ),
    "a link is looked up": ("select from action_tokens", "select from users"),
    "a link is sent": ("select from users for no key update", "delete from action_tokens"),
    "an account registers": (
        "insert into users (id, email, email_folded, name) values (gen_random_uuid(), 'b', 'b', '')",
        "delete from action_tokens",
    ),
    "an account is changed": (
        "select from users for no key update",
        "update users set name = 'Ada'",
    ),
}
HELD_UP = """
    select count(*) from pg_stat_activity
    where datname = current_database() and (wait_event_type = 'Lock' or wait_event = 'PgSleep')
"""


def newer_than(id_: str) -> int:
    """Return how many migrations come after this one."""
    ids = migrations.known_migrations()
    return len(ids) - ids.index(id_) - 1


@pytest.mark.parametrize("transaction", TRANSACTIONS)
@pytest.mark.parametrize("direction", ["apply", "roll back"])
def test_telling_domains_apart_does_not_deadlock_with_transactions_in_progress(
    database: Database, direction: str, transaction: str
) -> None:
    newer = newer_than("0021.tell-domains-apart")
    migrations.roll_back(database, newer + (direction == "apply"))
    first, then = TRANSACTIONS[transaction]
    folded = {"apply": "ada@strasse.example", "roll back": "ada@straße.example"}[direction]
    runs: dict[str, Callable[[], list[str]]] = {
        "apply": lambda: migrations.apply_pending(database),
        "roll back": lambda: migrations.roll_back(database, 1),
    }
    with (
        ThreadPoolExecutor(1) as executor,
        connect(database) as other,
        connect(database) as watcher,
    ):
        other.execute(ADD_FOLDED, ("ada@straße.example", folded))
        with other.transaction():
            other.execute(first)
            migrating = executor.submit(runs[direction])
            eventually_blocking(lambda: watcher.execute(HELD_UP).fetchone() == (1,))
            other.execute(then)
        assert migrating.result(DEADLINE_S)[:1] == ["0021.tell-domains-apart"]


@pytest.mark.slow
def test_telling_domains_apart_gives_up_if_links_stay_locked(database: Database) -> None:
    migrations.roll_back(database, newer_than("0021.tell-domains-apart"))
    with connect(database) as other, other.transaction():
        other.execute("select from action_tokens")
        with pytest.raises(StartError, match="could not obtain lock on relation"):
            migrations.roll_back(database, 1)


def test_missing_schema_is_an_error(empty_database: Database) -> None:
    with connect(empty_database) as conn:
        conn.execute("alter schema public rename to elsewhere")
    with pytest.raises(StartError, match="^cannot migrate: "):
        migrations.apply_pending(empty_database)


async def test_find_pending_lists_unapplied_migrations(
    empty_database: Database, conn: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    assert await migrations.find_pending(conn) == []
    await conn.execute("delete from _yoyo_migration where migration_id like '0002%'")
    assert await migrations.find_pending(conn) == ["0002.create-sessions"]
    empty = await asyncpg.connect(**empty_database.asyncpg_arguments())
    assert await migrations.find_pending(empty) == migrations.known_migrations()
    await empty.close()
