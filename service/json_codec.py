"""JSON as it is written and compared everywhere."""

from typing import Any

import orjson
from asyncpg.pgproto.pgproto import UUID


def encode(document: object, options: int = orjson.OPT_UTC_Z) -> bytes:
    """JSON in UTF-8: UUIDs as text, times by RFC 3339 in UTC with Z.

    Raises TypeError for what JSON does not know, but for asyncpg's UUIDs: their class is a subclass
    of the one that orjson writes itself.
    """
    return orjson.dumps(document, default=UUID.__str__, option=options)


def same(one: object, other: object) -> bool:
    """Whether they are alike in JSON, whatever order their keys are in.

    Python finds 1 and true alike, and 1 and 1.0, which are not.
    """
    ordered = orjson.OPT_UTC_Z | orjson.OPT_SORT_KEYS
    return encode(one, ordered) == encode(other, ordered)


def plain(document: object) -> Any:
    """The document as whoever reads its JSON has it."""
    return orjson.loads(encode(document))
