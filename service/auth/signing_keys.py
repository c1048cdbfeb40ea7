"""Signing keys of access tokens: creation, publication, rotation, revocation, and the key ring.

The database stores each key sealed, with the time from which it signs. A key is published and
verifies before that time, so that every verifier has it by then. It keeps verifying until the last
token it signed has expired. Every process holds all keys in a key ring, and reloads it every
``RELOAD_EVERY_S`` seconds to pick up new keys and to drop revoked ones.
"""

import asyncio
import logging
import re
import time
from collections import deque
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import asyncpg
import orjson
from aiohttp import web

from service.audit.events import Operator, record
from service.auth import queries
from service.auth.bearer import Bearer
from service.context import SETTINGS
from service.db.connection import Connection
from service.db.transactions import read, write
from service.exceptions import DatabaseUnavailable, StartError
from service.jobs.tasks import end_tasks
from service.sealing import SealError, seal, unseal
from service.settings import Settings, SettingsError

if TYPE_CHECKING:
    from joserfc.jwk import ECKey

KEY_RING: web.AppKey["KeyRing"] = web.AppKey("key_ring")

log = logging.getLogger(__name__)

ALGORITHM = "ES256"
# Tolerates small differences between the replicas' clocks.
LEEWAY_S = 10
# Each process picks up new keys, and refuses tokens of revoked ones, within this time.
RELOAD_EVERY_S = 10
RETRY_EVERY_S = 1
# Minimum interval between reloads caused by tokens with an unknown key.
RELOAD_MIN_INTERVAL_S = 1
# Maximum number of requests that wait for such a reload.
RELOAD_WAITERS_MAX = 16
# Number of deleted keys whose ids are remembered.
REVOKED_MAX = 64
# How long clients may cache the published keys.
PUBLIC_KEYS_MAX_AGE_S = 300
# From publication to first use: longer than the reload interval and the cache lifetime together.
PUBLICATION_LEAD_S = 600
# How long some process may keep signing with a key after its successor starts to sign.
HANDOVER_S = 60
PURPOSE = "signing keys"
# Key ids are JWK thumbprints (RFC 7638).
_KEY_ID = re.compile("[A-Za-z0-9_-]{43}")


@dataclass(slots=True)
class KeyRing:
    """The keys that verify, by id. Empty until they have been read from the database.

    ``schedule`` lists them in signing order, each with its start in ``time.monotonic`` time. The
    database's clock decides when a key starts to sign, whatever this machine's clock says.
    ``verified`` caches verified tokens with the Unix time at which they expire. ``hits`` and
    ``misses`` count lookups in it since the last metrics sample. ``revoked`` holds ids of deleted
    keys, and ``waiting`` counts the callers waiting in ``reload_for_unknown_key``.
    """

    keys: "dict[str, ECKey]" = field(default_factory=dict)
    schedule: "list[tuple[float, ECKey]]" = field(default_factory=list)
    verified: "dict[str, tuple[float, Bearer]]" = field(default_factory=dict)
    hits: int = 0
    misses: int = 0
    loaded_at: float = float("-inf")
    loading: asyncio.Lock = field(default_factory=asyncio.Lock)
    revoked: deque[str] = field(default_factory=lambda: deque(maxlen=REVOKED_MAX))
    waiting: int = 0


async def key_ring_context(app: web.Application) -> AsyncIterator[None]:
    """Load the keys at start, if possible, and reload them periodically."""
    app[KEY_RING] = KeyRing()
    try:
        await _load_first(app)
    except DatabaseUnavailable as error:
        cause = type(error.__cause__).__name__
        log.warning("signing keys not loaded yet", extra={"cause": cause})
    except asyncpg.SyntaxOrAccessError:
        # Migrations are pending, for example.
        log.exception("signing keys not loaded yet")
    task = asyncio.create_task(_keep_current(app), name="signing keys")
    yield
    await end_tasks(app, task)


async def _keep_current(app: web.Application) -> None:
    pause_s: float = RELOAD_EVERY_S
    while True:
        await asyncio.sleep(pause_s)
        pause_s = RELOAD_EVERY_S
        try:
            async with app[KEY_RING].loading:
                await _load(app)
        except DatabaseUnavailable as error:
            pause_s = RETRY_EVERY_S
            log.warning(
                "signing keys not reloaded", extra={"cause": type(error.__cause__).__name__}
            )
        except SettingsError as error:
            log.error("signing keys not reloaded", extra={"reason": str(error)})
        except Exception:
            log.exception("signing keys not reloaded")


async def public_keys(app: web.Application) -> list[dict[str, Any]]:
    """Return the verifying keys as members of a JWK set (RFC 7517)."""
    await _load_first(app)
    return [
        {**key.as_dict(private=False), "use": "sig", "alg": ALGORITHM}
        for key in app[KEY_RING].keys.values()
    ]


async def signing_key(app: web.Application) -> "ECKey":
    """Return the key that signs now. Raises like ``_load`` if no keys have been loaded yet."""
    await _load_first(app)
    schedule, now = app[KEY_RING].schedule, time.monotonic()
    return next((key for signs_at, key in reversed(schedule) if signs_at <= now), schedule[0][1])


async def verifying_keys(app: web.Application) -> "dict[str, ECKey]":
    """Return the verifying keys by id. Raises like ``_load`` if none have been loaded yet."""
    await _load_first(app)
    return app[KEY_RING].keys


async def reload_for_unknown_key(app: web.Application, key_id: str) -> "dict[str, ECKey]":
    """Reload the keys for a token whose key is not in the ring, and return the verifying keys.

    Concurrent callers share one reload, at most one every ``RELOAD_MIN_INTERVAL_S``. So made-up ids
    put no load on the database, and tokens of a brand-new key are not refused. Deleted keys cause
    no reload, because clients may keep sending their tokens. At most ``RELOAD_WAITERS_MAX`` callers
    wait, so that made-up ids cannot tie up any number of requests.
    """
    ring, asked_at = app[KEY_RING], time.monotonic()
    if (
        not _KEY_ID.fullmatch(key_id)
        or key_id in ring.revoked
        or ring.waiting >= RELOAD_WAITERS_MAX
    ):
        return ring.keys
    ring.waiting += 1
    try:
        async with ring.loading:
            if ring.loaded_at < asked_at:
                await asyncio.sleep(ring.loaded_at + RELOAD_MIN_INTERVAL_S - asked_at)
                await _load(app)
    finally:
        ring.waiting -= 1
    return ring.keys


async def _load_first(app: web.Application) -> None:
    """Load the keys unless they are loaded. Raises like ``_load``."""
    ring = app[KEY_RING]
    if ring.schedule:
        return
    async with ring.loading:
        if not ring.schedule:
            await _load(app)


async def _load(app: web.Application) -> None:
    """Load the keys into the ring, and create the first key if there is none.

    Raises DatabaseUnavailable if the database cannot be read, and SettingsError if SECRET_KEY does
    not open a key. Deleted keys leave the ring even in the second case.
    """
    ring, settings = app[KEY_RING], app[SETTINGS]
    began_at = time.monotonic()
    rows = await read(app, queries.list_signing_keys, verifies_s(settings))
    if not rows:
        rows = await write(app, _create_first_key, settings)
    known = {row["id"]: ring.keys[row["id"]] for row in rows if row["id"] in ring.keys}
    if len(known) < len(ring.keys):
        ring.verified.clear()
        ring.revoked.extend(ring.keys.keys() - known.keys())
    ring.keys = known
    ring.schedule = [(at, key) for at, key in ring.schedule if str(key.kid) in known]
    ring.schedule = [
        (began_at + row["signs_in_s"], known.get(row["id"]) or _open(row, settings.secret_keys))
        for row in rows
    ]
    ring.keys = {str(key.kid): key for _, key in ring.schedule}
    ring.loaded_at = began_at


def describe(rows: Sequence[asyncpg.Record]) -> list[dict[str, Any]]:
    """Add a state to the rows of ``list_signing_keys``: verifying, signing or waiting."""
    due = sum(row["signs_in_s"] <= 0 for row in rows)
    states = ["verifying"] * (due - 1) + ["signing"] * min(due, 1) + ["waiting"] * len(rows)
    return [
        {**row, "algorithm": ALGORITHM, "state": state}
        for row, state in zip(rows, states, strict=False)
    ]


def verifies_s(settings: Settings) -> float:
    """Return how many seconds a key keeps verifying after its successor starts to sign."""
    return settings.access_token_ttl_s + LEEWAY_S + HANDOVER_S


async def _create_first_key(conn: Connection, settings: Settings) -> list[asyncpg.Record]:
    """Create a key unless another replica just did. The table lock serializes the replicas."""
    await queries.lock_signing_keys(conn)
    if not await queries.list_signing_keys(conn, verifies_s(settings)):
        await _insert_key(conn, settings.secret_key, 0)
    return await queries.list_signing_keys(conn, verifies_s(settings))


async def rotate_keys(
    conn: Connection, settings: Settings, by: Operator, *, now: bool
) -> asyncpg.Record:
    """Add a key that signs after ``PUBLICATION_LEAD_S``; return its id and ``signs_from``.

    With ``now``, the key signs at once; a waiting key is used if there is one. Without ``now``,
    raises StartError if a key is already waiting. Raises SettingsError if SECRET_KEY does not open
    the existing keys, because the service could not open the new one either.
    """
    await queries.lock_signing_keys(conn)
    rows = await queries.list_signing_keys(conn, verifies_s(settings))
    check_secret_keys(rows, settings.secret_keys)
    waiting = next((row for row in rows if row["signs_in_s"] > 0), None)
    if waiting and not now:
        raise StartError(
            f"key {waiting['id']} is already scheduled to sign from {waiting['signs_from']:%FT%TZ};"
            " use --now to sign with it at once"
        )
    if waiting:
        key = await queries.start_signing(conn, waiting["id"])
    else:
        lead_s = PUBLICATION_LEAD_S if rows and not now else 0
        key = await _insert_key(conn, settings.secret_key, lead_s)
    await _record(conn, by, "key.rotate", key, rows)
    return key


async def revoke_keys(conn: Connection, settings: Settings, by: Operator) -> asyncpg.Record:
    """Replace all keys with a new one that signs at once; return its id and ``signs_from``.

    The old keys are not opened, so this also works after SECRET_KEY was lost.
    """
    await queries.lock_signing_keys(conn)
    rows = await queries.list_signing_keys(conn, verifies_s(settings))
    key = await _insert_key(conn, settings.secret_key, 0)
    await queries.delete_signing_keys_but(conn, key["id"])
    await _record(conn, by, "key.revoke", key, rows)
    return key


async def _record(
    conn: Connection,
    by: Operator,
    action: str,
    key: asyncpg.Record,
    rows: Iterable[asyncpg.Record],
) -> None:
    await record(
        conn,
        by,
        action,
        None,
        before={"keys": [row["id"] for row in rows]},
        after={"key": key["id"], "signs_from": key["signs_from"].isoformat()},
    )


def check_secret_keys(rows: Iterable[asyncpg.Record], secret_keys: tuple[str, ...]) -> None:
    """Raise SettingsError if there is a key that ``secret_keys`` do not open."""
    for row in rows:
        _open(row, secret_keys)


async def _insert_key(conn: Connection, secret_key: str, signs_in_s: float) -> asyncpg.Record:
    from joserfc.jwk import ECKey

    key = ECKey.generate_key("P-256", auto_kid=True)
    private = orjson.dumps(key.as_dict(private=True))
    sealed = seal(secret_key, PURPOSE, str(key.kid), private)
    return await queries.insert_signing_key(conn, str(key.kid), sealed, signs_in_s)


def _open(row: asyncpg.Record, secret_keys: tuple[str, ...]) -> "ECKey":
    from joserfc.jwk import ECKey

    try:
        plain = unseal(secret_keys, PURPOSE, row["id"], row["encrypted_key"])
    except SealError:
        raise SettingsError(
            "SECRET_KEY: expected the value that sealed this database's signing keys"
        ) from None
    return ECKey.import_key(orjson.loads(plain))
