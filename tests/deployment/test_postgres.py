"""The guide's statements for the role and the database, run on the PostgreSQL versions here."""

import asyncio
import os
import re
import secrets
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest

from service.db import migrations
from service.embedded import server as embedded
from service.settings import Database
from tests.support.clients import FAST, StartApp
from tests.support.factories import register
from tests.support.manifests import code_blocks
from tests.support.processes import connect

ROLE, SINCE_17, BEFORE_17, OWN_SCHEMA = code_blocks("sql", "The database")
PASSWORD = "a long password"
# Servers of other versions: those of Debian, and any below a directory of this variable.
OTHERS = sorted(
    {
        path.parent
        for root in ("/usr/lib/postgresql", os.environ.get("POSTGRES_VERSIONS", ""))
        if root
        for path in Path(root).glob("**/bin/initdb")
    }
)
NONE = pytest.param(None, marks=pytest.mark.skip(reason="there is no other PostgreSQL here"))


@pytest.fixture
def other_version(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Database]:
    monkeypatch.setenv("PG_BINDIR", str(request.param))
    server = embedded.start(tmp_path, options=FAST)
    yield server.database
    server.stop()


def follow(admin: Database, database: Database, statements: str) -> None:
    """Run the statements as ``admin``, with other names for the role and the databases."""
    ours = re.sub(r"\bshinkei\b", database.user, statements)
    ours = re.sub(r"\bapp\b", f"{database.user}_app", ours)
    with connect(admin) as conn:
        for statement in re.sub(r"--.*", "", ours).split(";"):
            if statement.strip():
                conn.execute(statement)


class Administrator:
    """Follows the guide, with a new role and databases; is no superuser."""

    def __init__(self, maintenance: Database) -> None:
        self.maintenance, self.name = maintenance, f"shinkei_role_{secrets.token_hex(6)}"
        self.admin = replace(maintenance, user=f"{self.name}_admin", password=PASSWORD)
        self.database = replace(
            maintenance, user=self.name, name=self.name, password=PASSWORD, password_file=None
        )
        with connect(maintenance) as conn:
            conn.execute(
                f"create role {self.admin.user} login password '{PASSWORD}' createdb createrole"
            )
            version = conn.info.server_version // 10_000
        self.create = SINCE_17 if version >= 17 else BEFORE_17

    def create_role(self, statements: str = ROLE) -> None:
        follow(self.admin, self.database, statements)

    def create_database(self) -> Database:
        follow(self.admin, self.database, self.create)
        return self.database

    def create_schema(self) -> Database:
        """Follow the steps for a database that belongs to another role: the administrator."""
        name = f"{self.name}_app"
        follow(self.admin, self.database, "create database app")
        follow(replace(self.admin, name=name), self.database, OWN_SCHEMA)
        return replace(self.database, name=name)

    def remove(self) -> None:
        with connect(self.maintenance) as conn:
            for name in (self.name, f"{self.name}_app"):
                conn.execute(f"drop database if exists {name} with (force)")
            conn.execute(f"drop role if exists {self.name}")
            conn.execute(f"drop role {self.admin.user}")


@pytest.fixture
def administrator(maintenance: Database) -> Iterator[Administrator]:
    administrator = Administrator(maintenance)
    yield administrator
    administrator.remove()


async def works(database: Database, start_app: StartApp) -> None:
    """Migrate the database, and register an account in it."""
    await asyncio.to_thread(migrations.apply_pending, database)
    await register(await start_app(database=database, db_pool_size=1))


async def test_service_works_in_a_database_made_as_the_guide_says(
    administrator: Administrator, start_app: StartApp
) -> None:
    administrator.create_role()
    await works(administrator.create_database(), start_app)


@pytest.mark.slow
async def test_service_works_in_its_own_schema_of_a_database_with_another_owner(
    administrator: Administrator, start_app: StartApp
) -> None:
    administrator.create_role()
    await works(administrator.create_schema(), start_app)


def test_administrator_without_the_grant_cannot_make_the_role_an_owner(
    administrator: Administrator,
) -> None:
    administrator.create_role(ROLE.split(";")[0])
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        administrator.create_database()


@pytest.mark.slow
@pytest.mark.parametrize("other_version", OTHERS or [NONE], ids=str, indirect=True)
async def test_guide_holds_for_other_versions_of_postgresql(
    other_version: Database, start_app: StartApp
) -> None:
    administrator = Administrator(other_version)
    administrator.create_role()
    await works(administrator.create_database(), start_app)
    await works(administrator.create_schema(), start_app)
