"""What a verified access token says."""

import uuid
from typing import NamedTuple


class Bearer(NamedTuple):
    """What a verified access token says: whose it is, and in which session.

    The ids are of asyncpg's own kind: they are compared, hashed and sent without a call of Python.
    """

    user_id: uuid.UUID
    session_id: uuid.UUID
