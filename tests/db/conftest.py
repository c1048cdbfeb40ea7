"""Fixtures of the database's tests."""

import dataclasses
import secrets
from collections.abc import AsyncIterator
from typing import Any

import pytest

from service.settings import Database, Settings
from tests.support.factories import PASSWORD


@pytest.fixture
async def role(settings: Settings, conn: Any) -> AsyncIterator[Database]:
    """The database for a separate role that may use all tables and owns none."""
    assert settings.database is not None
    name = f"shinkei_role_{secrets.token_hex(6)}"
    await conn.execute(f"create role {name} login password '{PASSWORD}'")
    await conn.execute(f"grant all on all tables in schema public to {name}")
    yield dataclasses.replace(settings.database, user=name, password=PASSWORD)
    await conn.execute(f"drop owned by {name}; drop role {name}")
