"""How rows become JSON: a schema says which columns are shown, orjson writes their values."""

import uuid
from typing import Any

import orjson
from marshmallow import Schema


class RowSchema(Schema):
    """What is shown of a row: the columns that the fields name, which have to be there.

    Values stay what asyncpg made of them, for ``encode``. marshmallow would call four functions for
    each field to make text of them: 17 µs for an account, where this and orjson take 2.
    """

    def dump(self, obj: Any, *, many: bool | None = None) -> Any:
        """The row as a dict, or each of the rows where they are ``many``."""
        names = self.dump_fields
        if many:
            return [{name: row[name] for name in names} for row in obj]
        return {name: obj[name] for name in names}


def encode(document: object) -> bytes:
    """JSON in UTF-8: UUIDs as text, times by RFC 3339 in UTC with Z."""
    return orjson.dumps(document, default=_default, option=orjson.OPT_UTC_Z)


def plain(document: object) -> Any:
    """The document as whoever reads its JSON has it."""
    return orjson.loads(encode(document))


def _default(value: object) -> str:
    # asyncpg's UUIDs are a subclass, which orjson does not know.
    if isinstance(value, uuid.UUID):
        return str(value)
    raise TypeError
