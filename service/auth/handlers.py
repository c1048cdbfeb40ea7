"""Registration and sign-in, and the guard that lets only signed-in callers through."""

import logging

from aiohttp import web

from service.auth.signing_keys import PUBLIC_KEYS_MAX_AGE_S, public_keys
from service.http.requests import json_response

log = logging.getLogger(__name__)


async def jwks(request: web.Request) -> web.Response:
    """The keys that verify access tokens, for other services (RFC 7517)."""
    keys = {"keys": await public_keys(request.app)}
    return json_response(
        keys, headers={"Cache-Control": f"public, max-age={PUBLIC_KEYS_MAX_AGE_S}"}
    )
