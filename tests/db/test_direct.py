"""Migrations go past a pooler, by DATABASE_DIRECT_URL."""

import asyncio
import dataclasses
from pathlib import Path
from typing import Any

import pytest

from service.db import migrations
from service.db.startup import prepare
from service.exceptions import StartError
from service.settings import Database, Settings
from tests.support.clients import StartApp
from tests.support.processes import connect, reserved_port, url_of
from tests.support.shell import run_all


def urls(pooled: Database, direct: Database) -> dict[str, str]:
    """Return variables in which DATABASE_URL leads to a database that refuses writes."""
    variables = url_of(pooled)
    variables["DATABASE_URL"] += "?options=-c%20default_transaction_read_only%3Don"
    return {**variables, "DATABASE_DIRECT_URL": url_of(direct)["DATABASE_URL"]}


def test_commands_migrate_through_the_direct_url(empty_database: Database, tmp_path: Path) -> None:
    applied, rolled_back, status = run_all(
        tmp_path,
        urls(empty_database, empty_database),
        "migrate --json",
        "migrate --rollback 1 --json",
        "migrate --status",
    )
    newest = migrations.known_migrations()[-1]
    assert newest in applied.stdout
    assert newest in rolled_back.stdout
    assert f"pending\t{newest}" in status.stdout


async def test_service_migrates_through_the_direct_url_when_it_starts(
    start_app: StartApp, database: Database, conn: Any
) -> None:
    await conn.execute(f'alter database "{database.name}" set default_transaction_read_only = on')
    await asyncio.to_thread(forget_the_newest, database)
    options = (*database.options, ("options", "-c default_transaction_read_only=off"))
    writable = dataclasses.replace(database, options=options)
    await start_app(direct_database=writable, migrate_on_start=True)
    assert await migrations.find_pending(conn) == []


def forget_the_newest(database: Database) -> None:
    """Have the newest migration be pending, which is safe to run twice."""
    with connect(database) as conn:
        conn.execute("set default_transaction_read_only = off")
        newest = migrations.known_migrations()[-1]
        conn.execute("delete from _yoyo_migration where migration_id = %s", [newest])


async def test_service_does_not_start_if_the_direct_url_leads_to_another_database(
    settings: Settings, database: Database, empty_database: Database
) -> None:
    await asyncio.to_thread(forget_the_newest, database)
    elsewhere = dataclasses.replace(settings, direct_database=empty_database, migrate_on_start=True)
    with pytest.raises(StartError, match="DATABASE_DIRECT_URL leads to another database than the"):
        await prepare(elsewhere)


def test_unreachable_direct_url_is_an_error_of_one_line(database: Database, tmp_path: Path) -> None:
    with reserved_port() as port:
        direct = f"postgresql://ada:hush@127.0.0.1:{port}/accounts"
        variables = {
            **url_of(database),
            "DATABASE_DIRECT_URL": direct,
            "DB_CONNECT_TIMEOUT_S": "0.1",
        }
        (result,) = run_all(tmp_path, variables, "migrate")
    assert result.code == 1
    where = f"127.0.0.1:{port}, database accounts, as user ada"
    assert result.stderr.startswith(f"shinkei: cannot connect to PostgreSQL at {where}: ")
