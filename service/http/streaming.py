"""Responses that are sent while they are being made, in bounded memory."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Mapping

from aiohttp import hdrs, web

from service.context import REQUEST_CONTEXT
from service.exceptions import DatabaseUnavailable
from service.http.problems import Problem

log = logging.getLogger(__name__)

# How long a client may take to read the whole response.
STREAM_TIMEOUT_S = 15 * 60


async def stream_json(
    request: web.Request, chunks: AsyncGenerator[bytes, None], headers: Mapping[str, str]
) -> web.StreamResponse:
    """Send a JSON document in chunks, each made once the client has read most of the one before.

    The deadline of the request ends with the first chunk. If a later one cannot be made or sent,
    the connection is cut, so that the client cannot take the body for a whole one.
    """
    response = web.StreamResponse(headers=headers)
    response.content_type = "application/json"
    async with contextlib.aclosing(chunks):
        first = await anext(chunks)
        context = REQUEST_CONTEXT.get()
        assert context.deadline is not None  # noqa: S101
        context.deadline.reschedule(None)
        try:
            async with asyncio.timeout(STREAM_TIMEOUT_S):
                await response.prepare(request)
                if request.method == hdrs.METH_HEAD:
                    return response
                await response.write(first)
                async for chunk in chunks:
                    await response.write(chunk)
                await response.write_eof()
        except ConnectionError as error:
            log.info("response cut off", extra={"cause": type(error).__name__})
        except (TimeoutError, DatabaseUnavailable, Problem) as error:
            cause = type(error.__cause__ or error).__name__
            log.warning("response cut off", extra={"cause": cause})
            _cut(request)
        except Exception:
            log.exception("unexpected error")
            _cut(request)
    return response


def _cut(request: web.Request) -> None:
    if request.transport is not None:
        request.transport.abort()
