"""Recovery codes: each signs in once, in place of a second factor that is lost."""

import hmac
import secrets

# Crockford's base 32, without letters that look like digits: 60 bits a code.
ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
COUNT = 10
_GROUPS, _GROUP_LENGTH = 3, 4
# As people may type one, with more separators than there are.
MAX_LENGTH = 64
_LOOK_ALIKES = str.maketrans("oil", "011", "- ")


def new_codes() -> list[str]:
    """Return random codes, such as ``k3fz-9m2p-7qxt``."""
    return [
        "-".join(
            "".join(secrets.choice(ALPHABET) for _ in range(_GROUP_LENGTH)) for _ in range(_GROUPS)
        )
        for _ in range(COUNT)
    ]


def hash_code(key: bytes, code: str) -> bytes:
    """Return the HMAC of a code as its owner types it, whatever its case and separators."""
    plain = code.lower().translate(_LOOK_ALIKES)
    return hmac.digest(key, plain.encode(), "sha256")
