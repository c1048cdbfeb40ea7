"""The claims of a verified access token."""

import uuid
from typing import NamedTuple


class Bearer(NamedTuple):
    """The account and the session that an access token belongs to.

    The ids are asyncpg's own UUID type, which compares, hashes and encodes without running Python
    code.
    """

    user_id: uuid.UUID
    session_id: uuid.UUID
