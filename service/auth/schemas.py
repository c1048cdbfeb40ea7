"""JSON of tokens and keys."""

from marshmallow import fields

from service.http.descriptions import Shape, array_of, object_of
from service.http.fields import Timestamp
from service.http.row_schema import RowSchema


class SigningKeySchema(RowSchema):
    """A signing key, as the command line shows it."""

    id = fields.String()
    algorithm = fields.String()
    state = fields.String()
    created_at = Timestamp()
    signs_from = Timestamp()
    retires_at = Timestamp()


SIGNING_KEY = SigningKeySchema()

_TEXT = {"type": "string"}
TOKEN_MEMBERS = {
    "access_token": {
        **_TEXT,
        "description": "A JWT (RFC 9068) to send as a bearer token. Its client_id is shinkei.",
    },
    "token_type": {"const": "bearer"},
    "expires_in": {
        "type": "integer",
        "minimum": 1,
        "description": "Lifetime of the access token in seconds.",
    },
    "refresh_token": {**_TEXT, "description": "Can be used once, to get a new pair of tokens."},
}
TOKENS = Shape("Tokens", object_of(**TOKEN_MEMBERS))
ACCESS_TOKEN = Shape(
    "AccessToken",
    object_of(
        **{name: member for name, member in TOKEN_MEMBERS.items() if name != "refresh_token"}
    ),
)
TOKENS_EXAMPLE = {
    "access_token": "eyJhbGciOiJFUzI1NiIsInR5cCI6ImF0K2p3dCJ9.eyJzdWIiOiLigKYifQ.c2ln",
    "token_type": "bearer",
    "expires_in": 900,
    "refresh_token": "q7RkV2xW9yB4nM1cP8tL5zH3jF6dS0aG_uE-iO2wKXo",
}
ACCESS_TOKEN_EXAMPLE = {
    name: member for name, member in TOKENS_EXAMPLE.items() if name != "refresh_token"
}

_JWK = object_of(
    kty={"const": "EC"},
    crv={"const": "P-256"},
    x=_TEXT,
    y=_TEXT,
    kid=_TEXT,
    use={"const": "sig"},
    alg={"const": "ES256"},
)
JWKS = Shape("Jwks", object_of(keys=array_of(_JWK)))
JWKS_EXAMPLE = {
    "keys": [
        {
            "kty": "EC",
            "crv": "P-256",
            "x": "f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU",
            "y": "x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0",
            "kid": "NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs",
            "use": "sig",
            "alg": "ES256",
        }
    ]
}
