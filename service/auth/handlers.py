"""The endpoint that publishes the keys of access tokens."""

import logging

from aiohttp import web

from service.auth.schemas import JWKS, JWKS_EXAMPLE
from service.auth.signing_keys import PUBLIC_KEYS_MAX_AGE_S, public_keys
from service.http.descriptions import Success, describe
from service.http.problems import MISCONFIGURED
from service.http.requests import json_response

log = logging.getLogger(__name__)


@describe(
    {200: Success("A JWK set.", JWKS, example=JWKS_EXAMPLE)},
    problems=(MISCONFIGURED,),
)
async def jwks(request: web.Request) -> web.Response:
    """List the public keys that verify access tokens (RFC 7517)."""
    keys = {"keys": await public_keys(request.app)}
    return json_response(
        keys, headers={"Cache-Control": f"public, max-age={PUBLIC_KEYS_MAX_AGE_S}"}
    )
