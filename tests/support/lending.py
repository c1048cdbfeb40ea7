"""An application with its database, which tests borrow one after another.

To start an application and connect to a new database takes longer than most tests. So what a test
has stored is deleted after it, and the next test gets the same application. A test that changes
more, such as the schema, the signing key or the application itself, is its last borrower.
"""

import asyncio
import contextlib
import shutil
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import Any

import asyncpg
from aiohttp import web
from aiohttp.test_utils import TestClient

from service.app import create_app
from service.settings import Settings
from tests.support.served import Server
from tests.support.waiting import eventually

# After more rows than this were deleted, queries are slower.
ROWS_MAX = 2000
# A task that takes longer will not end by itself.
IDLE_WITHIN_S = 5

_TABLES = """
    select oid::regclass::text from pg_class
    where relkind = 'r' and relnamespace = 'public'::regnamespace order by 1
"""
# What is defined in the database, and what ANALYZE has found. Every change adds a newer row to one
# of them, or deletes one.
_CATALOGS = (
    "pg_attrdef",
    "pg_attribute",
    "pg_class",
    "pg_constraint",
    "pg_index",
    "pg_proc",
    "pg_rewrite",
    "pg_statistic",
    "pg_trigger",
    "pg_type",
    "(select xmin from pg_db_role_setting where setdatabase ="
    " (select oid from pg_database where datname = current_database())) settings",
)
_DEFINITIONS = " union all ".join(
    f"select count(*), max(xmin::text::bigint) from {catalog}" for catalog in _CATALOGS
)
_QUIET = """
    select not exists (select from pg_stat_activity
                       where datname = current_database() and pid <> pg_backend_pid()
                         and state <> 'idle' and backend_type = 'client backend')
"""


class LentServer(Server):
    """Goes on serving after the test that borrowed it."""

    async def start_server(self, *_: Any, **__: Any) -> None:
        if self.runner is None:
            await super().start_server()

    async def close(self) -> None:
        """Do nothing: see ``end``."""

    async def end(self) -> None:
        await super().close()


class WatchedClient(TestClient[web.Request, web.Application]):
    """Notes whether the test has looked inside the application, which it may have changed."""

    looked_inside = False

    @property
    def app(self) -> web.Application:
        self.looked_inside = True
        return super().app


class Lender:
    """Has one application at a time, on a database of its own."""

    def __init__(self, new_settings: Callable[[], AbstractContextManager[Settings]]) -> None:
        self._new_settings = new_settings
        self._owned = contextlib.AsyncExitStack()
        self.settings: Settings | None = None
        # Whether the test has changed more than is stored.
        self.changed = False

    async def borrow(self) -> Settings:
        """Return the settings of the application; before that, start it if there is none."""
        if self.settings is None:
            settings = self._owned.enter_context(self._new_settings())
            self.server = LentServer(create_app(settings))
            await self.server.start_server()
            self._owned.push_async_callback(self.server.end)
            assert settings.database is not None
            self._conn = await asyncpg.connect(**settings.database.asyncpg_arguments())
            self._owned.push_async_callback(self._conn.close)
            await self._remember()
            self.settings = settings
        self.changed = False
        self._tasks = asyncio.all_tasks()
        return self.settings

    async def take_back(self) -> None:
        """Delete what the test has stored, or end the application that it has changed."""
        as_before = False
        try:
            as_before = (
                not self.changed
                and await self._is_idle()
                and await self._is_clean()
                # A mail may have been claimed just before it was deleted.
                and await self._is_idle()
            )
        except (asyncpg.InterfaceError, asyncpg.PostgresError):
            # The test has closed this connection too, or its user may not disable triggers.
            pass
        finally:
            if not as_before:
                await self.end()
        if self.settings is not None:
            shutil.rmtree(self.settings.data_dir / "mail", ignore_errors=True)

    async def stop(self) -> None:
        """End the application, but keep its database for the rest of the test."""
        self.changed = True
        await self.server.end()

    async def end(self) -> None:
        """End the application, and drop its database."""
        self.settings = None
        await self._owned.aclose()

    async def _remember(self) -> None:
        tables = [table for (table,) in await self._conn.fetch(_TABLES)]
        filled = await self._conn.fetchval(_filled(tables))
        self._emptied = [table for table in tables if table not in filled]
        defined = f"select array_agg(d::text) from ({_DEFINITIONS}) d"
        self._state = f"select ({_filled(self._emptied)}), ({defined}), ({_contents(filled)})"
        _, *self._first = await self._conn.fetchrow(self._state)

    async def _is_idle(self) -> bool:
        """Wait for what goes on after a response. Return whether it ended."""
        # Tasks that the application started with may be in a transaction.
        await eventually(lambda: self._conn.fetchval(_QUIET))
        begun = asyncio.all_tasks() - self._tasks - {asyncio.current_task()}
        if begun:
            _, begun = await asyncio.wait(begun, timeout=IDLE_WITHIN_S)
        for task in begun:
            task.cancel()
        return not begun

    async def _is_clean(self) -> bool:
        """Delete the rows of the test. Return whether everything is now as it was."""
        stored, *state = await self._conn.fetchrow(self._state)
        if state != self._first:
            return False
        count = 0
        if stored:
            async with self._conn.transaction():
                # Neither triggers nor foreign keys matter, since all rows go.
                await self._conn.execute("set local session_replication_role = replica")
                for table in stored:
                    status = await self._conn.execute(f"delete from {table}")
                    count += int(status.split()[1])
        return count <= ROWS_MAX


def _filled(tables: Iterable[str]) -> str:
    """Return a query for the names of those ``tables`` that have rows."""
    each = (f"select '{table}' as name where exists (select from {table})" for table in tables)
    return f"select coalesce(array_agg(name), array[]::text[]) from ({' union all '.join(each)}) x"


def _contents(tables: Iterable[str]) -> str:
    """Return a query for a digest of all rows in the ``tables``."""
    each = (f"(select string_agg(t::text, ',' order by t::text) from {t} t)" for t in tables)
    return f"select md5(concat({', '.join(each)}))"
