"""An account's factors as JSON, for its owner and for administrators."""

import uuid

from service.db.connection import Connection
from service.factors import queries
from service.factors.schemas import FACTOR, FACTOR_EXAMPLE, FACTORS, TOTP_EXAMPLE

__all__ = ["FACTORS", "FACTORS_EXAMPLE", "describe_factors"]

FACTORS_EXAMPLE = {"items": [FACTOR_EXAMPLE, TOTP_EXAMPLE], "recovery_codes_left": 9}


async def describe_factors(conn: Connection, user_id: uuid.UUID) -> dict[str, object]:
    """Return the factors, never with a secret or a key."""
    factors = await queries.list_factors(conn, user_id)
    return {
        "items": FACTOR.dump(factors, many=True),
        "recovery_codes_left": await queries.count_recovery_codes(conn, user_id),
    }
