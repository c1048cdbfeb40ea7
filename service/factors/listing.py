"""An account's factors as JSON: for its owner, for administrators, and in audit events."""

import uuid
from typing import Any

import asyncpg

from service.db.connection import Connection
from service.factors import queries
from service.factors.schemas import FACTOR


async def describe_factors(conn: Connection, user_id: uuid.UUID) -> dict[str, object]:
    """Return the factors, never with a secret or a key."""
    factors = await queries.list_factors(conn, user_id)
    return {
        "items": FACTOR.dump(factors, many=True),
        "recovery_codes_left": await queries.count_recovery_codes(conn, user_id),
    }


def event_of(factor: asyncpg.Record) -> dict[str, Any]:
    """Return what an audit event says of a factor."""
    return {"factor_id": str(factor["id"]), "type": factor["type"]}
