"""How long a stop takes: each part is bounded, and no two parts add up."""

import asyncio
import dataclasses
import signal
import time
from typing import Any

import pytest
from aiohttp import web

from service.app import create_app
from service.db.connection import POOL, POOL_WAITING
from service.mail import sender
from service.process import server
from service.settings import Settings
from tests.support.factories import PASSWORD
from tests.support.locks import WAITING
from tests.support.proxy import proxy_to
from tests.support.waiting import eventually

ACCOUNT = f'{{"email": "ada@example.com", "password": "{PASSWORD}"}}'
SIGN_IN = (
    "POST /api/v1/auth/login HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    f"Content-Length: {len(ACCOUNT)}\r\n\r\n{ACCOUNT}"
).encode()


@pytest.mark.usefixtures("mail_at_once")
async def test_mail_and_the_pool_share_one_deadline(settings: Settings) -> None:
    """Neither the sender, which waits for a connection, nor the pool can end by itself."""
    app = create_app(dataclasses.replace(settings, db_close_timeout_s=0.2))
    runner = web.AppRunner(app)
    await runner.setup()
    for _ in range(app[POOL].get_max_size()):
        await app[POOL].acquire()
    await eventually(lambda: app[POOL_WAITING].count)
    began = time.monotonic()
    await runner.cleanup()
    assert time.monotonic() - began < sender.STOP_TIMEOUT_S


@pytest.mark.slow
async def test_stop_is_bounded_while_the_database_is_silent(
    settings: Settings, conn: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "SHUTDOWN_TIMEOUT_S", 4)
    signals: asyncio.Queue[signal.Signals] = asyncio.Queue()
    started = asyncio.Event()
    assert settings.database is not None
    with server.listen("127.0.0.1", 0) as listener:
        async with proxy_to(settings.database) as (database, flowing):
            silent = dataclasses.replace(settings, database=database, db_close_timeout_s=1)
            serving = asyncio.create_task(
                server.serve_until_signalled(silent, listener, signals, started.set, lambda _: None)
            )
            await eventually(lambda: started.is_set() or serving.done())
            assert not serving.done(), serving.exception()
            async with conn.transaction():
                await conn.execute("lock table throttles in access exclusive mode")
                reader, writer = await asyncio.open_connection(*listener.getsockname())
                writer.write(SIGN_IN)
                await eventually(lambda: conn.fetchval(WAITING))
                flowing.clear()
                began = time.monotonic()
                signals.put_nowait(signal.SIGINT)
                await serving
                assert time.monotonic() - began < 2 * server.SHUTDOWN_TIMEOUT_S
            assert await reader.read() == b"", "the request did not end by itself"
            writer.close()
            flowing.set()
