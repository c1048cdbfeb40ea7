"""Migrations: applied, rolled back, run concurrently, after a crash; never edited once merged."""

import hashlib
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from service.db import migrations
from service.exceptions import StartError
from service.settings import Database
from tests.support.processes import connect, started
from tests.support.waiting import DEADLINE_S

HERE = Path(__file__).parent


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
        applied = list(executor.map(lambda _: migrations.apply_pending(empty_database), range(8)))
    assert max(applied, key=len) == migrations.known_migrations()
    assert sum(map(len, applied)) == len(migrations.known_migrations())


def test_killed_migration_does_not_block_the_next(empty_database: Database) -> None:
    """The killed process holds the advisory lock, yoyo's lock row and an open transaction."""
    script = """
import os, sys
from service.db import migrations
from service.settings import Database
database = Database(((sys.argv[1], int(sys.argv[2])),), *sys.argv[3:6])
with migrations._locked_backend(database, 0) as (backend, migrations):
    backend._insert_lock_row(1, 1)
    with backend.transaction():
        backend.execute("create table half (id int)")
        print("ready", flush=True)
        sys.stdin.read()
"""
    host, port = empty_database.hosts[0]
    arguments = [host, str(port), empty_database.name, empty_database.user, empty_database.password]
    command = (sys.executable, "-c", script, *arguments)
    with started(*command, stdin=subprocess.PIPE) as killed:
        assert killed.stdout is not None
        assert killed.stdout.readline() == "ready\n"
        killed.kill()
        killed.wait(DEADLINE_S)
    assert migrations.apply_pending(empty_database) == migrations.known_migrations()


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
