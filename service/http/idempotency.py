"""Idempotency-Key: a write that is asked for again is done once and answered the same.

draft-ietf-httpapi-idempotency-key-header. The answer is stored in the transaction that it tells of:
whatever is cut off in between, asking again with the key settles it.
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

from service.context import SETTINGS, USER
from service.db.connection import Connection
from service.db.transactions import read, write
from service.http.client_ip import client_ip, client_network
from service.http.problems import (
    IDEMPOTENCY_KEY_IN_USE,
    IDEMPOTENCY_KEY_REUSED,
    IDEMPOTENT_ANSWER_LOST,
    INVALID_IDEMPOTENCY_KEY,
    Problem,
)
from service.sealing import SealError, seal, unseal
from service.telemetry.metrics import count

P = ParamSpec("P")

LIFETIME_H = 24
_KEY = re.compile(r"[\x21-\x7e]{1,255}")
_PURPOSE = "idempotent answers"
_KEPT_HEADERS = ("Content-Type", "ETag", "Location")


async def write_once(
    request: web.Request,
    work: Callable[Concatenate[Connection, P], Awaitable[web.Response]],
    *args: P.args,
    **kwargs: P.kwargs,
) -> web.Response:
    """Run ``work`` in one transaction as ``transactions.write`` does, at most once for a key.

    Without an Idempotency-Key it just runs. With one: the first answer again for the same request,
    or Problem 422 where SECRET_KEY has changed since; 422 for another request under the same key,
    409 while the first is under way, 400 for a key that is none. A problem that ``work`` raises is
    not kept: nothing was written.
    """
    key = request.headers.get("Idempotency-Key")
    if key is None:
        return await write(request.app, work, *args, **kwargs)
    if not _KEY.fullmatch(key):
        raise Problem(INVALID_IDEMPOTENCY_KEY)
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
                _PURPOSE,
                _place(caller, key),
                _write_response(response),
            ),
        )
        return response

    return await write(request.app, once)


async def find_stored_response(request: web.Request) -> web.Response | None:
    """The stored answer to this very request, for handlers that check what their success undoes."""
    key = request.headers.get("Idempotency-Key")
    if key is None:
        return None
    found = await read(request.app, _find, _caller(request), key)
    if found is None or found["fingerprint"] != await _fingerprint(request):
        return None
    return _replay(request, key, found["answer"])


def _replay(request: web.Request, key: str, sealed: bytes) -> web.Response:
    try:
        place = _place(_caller(request), key)
        stored = unseal(request.app[SETTINGS].secret_key, _PURPOSE, place, sealed)
    except SealError:
        raise Problem(IDEMPOTENT_ANSWER_LOST) from None
    count(request.app, "idempotent_replays")
    return _read_response(stored)


def _place(caller: bytes, key: str) -> str:
    """Name the row that a sealed response belongs to. It may hold tokens of its caller."""
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
    """Whose key it is: the signed-in user's, or the client's network where nobody is signed in."""
    user = request.get(USER)
    ip = client_ip(request)
    whose = user["id"] if user else client_network(ip) if ip else ""
    return hashlib.sha256(str(whose).encode()).digest()


async def _fingerprint(request: web.Request) -> bytes:
    head = f"{request.method} {request.path.rstrip('/')}\n".encode()
    return hashlib.sha256(head + await request.read()).digest()


def _write_response(response: web.Response) -> bytes:
    body = response.body if isinstance(response.body, bytes) else b""
    headers = {name: response.headers[name] for name in _KEPT_HEADERS if name in response.headers}
    return orjson.dumps([response.status, headers, base64.b64encode(body).decode()])


def _read_response(stored: bytes) -> web.Response:
    status, headers, body = orjson.loads(stored)
    return web.Response(status=status, headers=headers, body=base64.b64decode(body) or None)
