"""Ids in statements: as text, because asyncpg looks up arrays of other types in the catalog."""

import uuid
from collections.abc import Iterable


def texts(ids: Iterable[uuid.UUID]) -> list[str]:
    return [str(each) for each in ids]


def uuids(ids: Iterable[str]) -> list[uuid.UUID]:
    return [uuid.UUID(each) for each in ids]
