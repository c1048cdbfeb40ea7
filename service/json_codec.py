"""JSON encoding and comparison used throughout the service."""

from typing import Any

import orjson
from asyncpg.pgproto.pgproto import UUID


def encode(document: object, options: int = orjson.OPT_UTC_Z) -> bytes:
    """Encode as UTF-8 JSON, with UUIDs as text and times as RFC 3339 in UTC with Z.

    Raises TypeError for values that JSON cannot represent. asyncpg's UUIDs need ``default``,
    because orjson encodes ``uuid.UUID`` but not its subclasses.
    """
    return orjson.dumps(document, default=UUID.__str__, option=options)


def same(one: object, other: object) -> bool:
    """Return whether two documents are equal as JSON, ignoring the order of keys.

    Unlike Python's ``==``, tells 1 from true, and 1 from 1.0.
    """
    ordered = orjson.OPT_UTC_Z | orjson.OPT_SORT_KEYS
    return encode(one, ordered) == encode(other, ordered)


def plain(document: object) -> Any:
    """Return the document after a round trip through JSON."""
    return orjson.loads(encode(document))
