"""Problems of second factors and passkeys."""

from service.factors.webauthn import REFUSALS, PasskeyRefused
from service.http.problems import CHALLENGE, Problem, ProblemType

SECOND_FACTOR_REQUIRED = ProblemType(
    401,
    "second_factor_required",
    "The password is right. Send the challenge and a second factor to"
    " POST /api/v1/auth/second-factor.",
    CHALLENGE,
)
INVALID_CHALLENGE = ProblemType(
    401,
    "invalid_challenge",
    "This challenge is unknown, has expired, or was used too often. Start again.",
    CHALLENGE,
)
WRONG_SECOND_FACTOR = ProblemType(
    401, "wrong_code", "The code is wrong, or has been used already.", CHALLENGE
)
# For signed-in callers.
WRONG_CODE = WRONG_SECOND_FACTOR._replace(status=403, headers={})
EXPIRED_CHALLENGE = INVALID_CHALLENGE._replace(status=403, headers={})
PASSKEYS_NOT_CONFIGURED = ProblemType(
    409,
    "passkeys_not_configured",
    "Passkeys need a domain name or localhost. The operator can set PUBLIC_ORIGIN or RP_ID.",
)
CREDENTIAL_TAKEN = ProblemType(
    409, "credential_taken", "An account already has a passkey with this id."
)
TOO_MANY_FACTORS = ProblemType(
    409, "too_many_factors", "This account has the maximum number of these. Remove one first."
)
LAST_WAY_IN = ProblemType(
    409,
    "last_way_in",
    "This is the last way to sign in to this account. Set a password or add a passkey first.",
)
LAST_SECOND_FACTOR = ProblemType(
    409,
    "last_second_factor",
    "This account must have a second factor, and this is the last. Add another one first.",
)
FACTOR_NOT_FOUND = ProblemType(404, "not_found", "There is no such factor.")

# What is wrong with a passkey: see webauthn.REFUSALS. The first at sign-in is that nobody has it.
REFUSED_REGISTRATION = tuple(
    ProblemType(422, f"passkey_{code}", detail) for code, detail in REFUSALS.items()
)
REFUSED_ASSERTION = (
    ProblemType(401, "unknown_passkey", "There is no account with this passkey.", CHALLENGE),
    *(kind._replace(status=401, headers=CHALLENGE) for kind in REFUSED_REGISTRATION),
)
REFUSED_REAUTHENTICATION = (
    ProblemType(403, "unknown_passkey", "Your account has no such passkey."),
    *(kind._replace(status=403) for kind in REFUSED_REGISTRATION),
)


def refused(error: PasskeyRefused, kinds: tuple[ProblemType, ...]) -> Problem:
    """Return the problem for a refused passkey, one of ``kinds``."""
    kind = next(kind for kind in kinds if kind.code == f"passkey_{error.code}")
    return Problem(kind, error.detail)
