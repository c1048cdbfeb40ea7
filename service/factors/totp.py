"""Time-based one-time codes (TOTP, RFC 6238), of apps such as authenticators."""

import base64
import hmac
import io
import secrets
from typing import Literal, TypeAlias
from urllib.parse import quote, urlencode

Algorithm: TypeAlias = Literal["SHA1", "SHA256", "SHA512"]

# What every app supports.
ALGORITHM: Algorithm = "SHA1"
DIGITS = 6
PERIOD_S = 30
SECRET_BYTES = 20
# Steps that a clock may be early or late (RFC 6238 §5.2).
DRIFT_STEPS = 1


def new_secret() -> bytes:
    """Return 160 random bits, as long as the hash (RFC 4226 §4)."""
    return secrets.token_bytes(SECRET_BYTES)


def code_at(
    secret: bytes, step: int, *, digits: int = DIGITS, algorithm: Algorithm = ALGORITHM
) -> str:
    """Return the code of a time step, or of a counter (RFC 4226 §5.3)."""
    # A slow import, which most commands do not need.
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.twofactor.hotp import HOTP

    return HOTP(secret, digits, getattr(hashes, algorithm)()).generate(step).decode()


def step_at(unix_time_s: float) -> int:
    """Return the number of the time step."""
    return int(unix_time_s // PERIOD_S)


def find_step(secret: bytes, code: str, unix_time_s: float, last_step: int | None) -> int | None:
    """Return the time step that the code belongs to, or None if it is wrong.

    A step up to ``last_step`` is refused, because each code is good once (RFC 6238 §5.2).
    """
    now = step_at(unix_time_s)
    found = None
    for step in range(now - DRIFT_STEPS, now + DRIFT_STEPS + 1):
        if hmac.compare_digest(code_at(secret, step), code) and step > (last_step or -1):
            found = step
    return found


def otpauth_uri(secret: bytes, issuer: str, email: str) -> str:
    """Return the key as the URI that apps read from a QR code (Key Uri Format)."""
    label = quote(f"{issuer}:{email}", safe="@")
    parameters = {
        "secret": to_base32(secret),
        "issuer": issuer,
        "algorithm": ALGORITHM,
        "digits": DIGITS,
        "period": PERIOD_S,
    }
    return f"otpauth://totp/{label}?{urlencode(parameters, quote_via=quote)}"


def to_base32(secret: bytes) -> str:
    """Return the secret as people type it into an app, without padding."""
    return base64.b32encode(secret).decode().rstrip("=")


def qr_svg(uri: str) -> str:
    """Return a QR code of the URI as SVG, for a page or an image of its own."""
    import segno

    svg = io.BytesIO()
    # A mask that is given saves trying all eight.
    code = segno.make(uri, error="m", mask=0)
    # Phones do not read a dark code on a dark page.
    code.save(svg, kind="svg", scale=4, light="#fff", xmldecl=False, nl=False)
    return svg.getvalue().decode()
