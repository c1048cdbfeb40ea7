"""The endpoint that tells browsers which origins share this service's passkeys."""

from aiohttp import web

from service.context import SETTINGS
from service.factors.webauthn import relying_party
from service.http.descriptions import Success, array_of, describe, object_of
from service.http.requests import json_response

MAX_AGE_S = 3600


@describe(
    {
        200: Success(
            "The origins.",
            object_of(origins=array_of({"type": "string", "format": "uri"})),
            example={"origins": ["https://app.example", "https://app.example.org"]},
        )
    },
    database=False,
)
async def related_origins(request: web.Request) -> web.Response:
    """List the origins whose pages may use passkeys (WebAuthn Level 3 §5.11).

    The list is empty if PUBLIC_ORIGIN is an IP address, because there are no passkeys then.
    """
    rp = relying_party(request.app[SETTINGS])
    origins = {"origins": sorted(rp.origins if rp else ())}
    return json_response(origins, headers={"Cache-Control": f"public, max-age={MAX_AGE_S}"})
