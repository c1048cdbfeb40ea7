"""Idempotency-Key: a repeated write is carried out once and gets the same response.

Implements draft-ietf-httpapi-idempotency-key-header. The response is stored in the transaction of
the write, so a client that lost the connection can safely retry with the same key.
"""

import base64
import functools
import hashlib
import re
from collections.abc import Awaitable, Callable
from typing import Concatenate, ParamSpec

import asyncpg
import orjson
from aiohttp import web
from aiohttp.typedefs import Handler

from service.context import SETTINGS, USER
from service.db.connection import Connection
from service.db.transactions import read, write
from service.http.client_ip import client_ip, client_network
from service.http.codings import read_decoded
from service.http.problems import (
    IDEMPOTENCY_KEY_IN_USE,
    IDEMPOTENCY_KEY_REUSED,
    IDEMPOTENT_RESPONSE_LOST,
    INVALID_IDEMPOTENCY_KEY,
    Problem,
)
from service.sealing import SealError, seal, unseal
from service.telemetry.metrics import count

P = ParamSpec("P")

LIFETIME_H = 24
# A hash of the body, set by a handler that streams it.
BODY_DIGEST: web.RequestKey[bytes] = web.RequestKey("body_digest")
_KEY = re.compile(r"[\x21-\x7e]{1,255}")
PURPOSE = "idempotent answers"
_KEPT_HEADERS = ("Content-Type", "ETag", "Location")


async def write_once(
    request: web.Request,
    work: Callable[Concatenate[Connection, P], Awaitable[web.Response]],
    *args: P.args,
    **kwargs: P.kwargs,
) -> web.Response:
    """Run ``work`` in one transaction like ``transactions.write``, at most once per key.

    Without an Idempotency-Key, ``work`` simply runs. With a key, repeating the request returns the
    stored response.

    Raises Problem 422 if the key was used for a different request, or if the response was sealed
    with another SECRET_KEY; 409 while the first request is in progress; 400 if the key is
    malformed. A problem raised by ``work`` is not stored, because nothing was written.
    """
    key = _key(request)
    if key is None:
        return await write(request.app, work, *args, **kwargs)
    caller = _caller(request)
    fingerprint = await _fingerprint(request)

    @functools.wraps(work)
    async def once(conn: Connection) -> web.Response:
        lock = int.from_bytes(hashlib.sha256(caller + key.encode()).digest()[:8], signed=True)
        if not await conn.fetchval("select pg_try_advisory_xact_lock($1)", lock):
            raise Problem(IDEMPOTENCY_KEY_IN_USE)
        found = await _find(conn, caller, key)
        if found:
            if found["fingerprint"] != fingerprint:
                raise Problem(IDEMPOTENCY_KEY_REUSED)
            return _replay(request, key, found["answer"])
        response = await work(conn, *args, **kwargs)
        await conn.execute(
            """
            insert into idempotency_keys (caller, key, fingerprint, answer)
            values ($1, $2, $3, $4)
            on conflict on constraint idempotency_keys_pkey do update
            set fingerprint = excluded.fingerprint, answer = excluded.answer, created_at = now()
            """,
            caller,
            key,
            fingerprint,
            seal(
                request.app[SETTINGS].secret_key,
                PURPOSE,
                bound_to(caller, key),
                _write_response(response),
            ),
        )
        return response

    return await write(request.app, once)


def replay_first(handler: Handler) -> Handler:
    """Wrap a handler so that a repeated request gets its stored response before anything else.

    A repeat then uses up no limit and hashes nothing. A different request with the same key does
    both, so that guessing the first request is limited, until ``write_once`` rejects it. Raises
    Problem 400 if the key is malformed.
    """

    @functools.wraps(handler)
    async def replaying(request: web.Request) -> web.StreamResponse:
        return await find_stored_response(request) or await handler(request)

    return replaying


async def find_stored_response(request: web.Request) -> web.Response | None:
    """Return the stored response to this request, or None. Raises Problem 400."""
    key = _key(request)
    if key is None:
        return None
    found = await read(request.app, _find, _caller(request), key)
    if found is None or found["fingerprint"] != await _fingerprint(request):
        return None
    return _replay(request, key, found["answer"])


def _key(request: web.Request) -> str | None:
    """Return the request's Idempotency-Key, if any. Raises Problem 400 if it is malformed."""
    key = request.headers.get("Idempotency-Key")
    if key is not None and not _KEY.fullmatch(key):
        raise Problem(INVALID_IDEMPOTENCY_KEY)
    return key


def _replay(request: web.Request, key: str, sealed: bytes) -> web.Response:
    try:
        row = bound_to(_caller(request), key)
        stored = unseal(request.app[SETTINGS].secret_keys, PURPOSE, row, sealed)
    except SealError:
        raise Problem(IDEMPOTENT_RESPONSE_LOST) from None
    count(request.app, "idempotent_replays")
    return _read_response(stored)


def bound_to(caller: bytes, key: str) -> str:
    """Name the row that a sealed response is bound to; the response may contain tokens."""
    return f"{caller.hex()} {key}"


async def _find(conn: Connection, caller: bytes, key: str) -> asyncpg.Record | None:
    return await conn.fetchrow(
        """
        select fingerprint, answer from idempotency_keys
        where caller = $1 and key = $2 and created_at > now() - make_interval(hours => $3)
        """,
        caller,
        key,
        LIFETIME_H,
    )


def _caller(request: web.Request) -> bytes:
    """Return a hash of the key's owner: the signed-in user, or else the client's network."""
    user = request.get(USER)
    ip = client_ip(request)
    whose = user["id"] if user else client_network(ip) if ip else ""
    return hashlib.sha256(str(whose).encode()).digest()


async def _fingerprint(request: web.Request) -> bytes:
    head = f"{request.method} {request.path.rstrip('/')}\n".encode()
    body = request[BODY_DIGEST] if BODY_DIGEST in request else await read_decoded(request)
    return hashlib.sha256(head + body).digest()


def _write_response(response: web.Response) -> bytes:
    body = response.body if isinstance(response.body, bytes) else b""
    headers = {name: response.headers[name] for name in _KEPT_HEADERS if name in response.headers}
    return orjson.dumps([response.status, headers, base64.b64encode(body).decode()])


def _read_response(stored: bytes) -> web.Response:
    status, headers, body = orjson.loads(stored)
    return web.Response(status=status, headers=headers, body=base64.b64decode(body) or None)
