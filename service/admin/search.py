"""What an index of trigrams can be asked for (PostgreSQL's pg_trgm, "Index Support")."""

import re
import unicodedata

_TRIGRAM = re.compile("[^ ]{3}|[^ ]{2} | [^ ]")


def has_trigram(text: str) -> bool:
    """Whether the index can look for values that contain the text.

    Words have letters and digits, but no other numbers, such as ½. Marks count as part of their
    word here; to pg_trgm some are and some are not, which Python cannot tell.
    """
    kinds = map(unicodedata.category, text)
    words = (kind[0] in "LM" or kind in ("Nd", "Nl") for kind in kinds)
    spaced = "".join(char if word else " " for char, word in zip(text, words, strict=True))
    return bool(_TRIGRAM.search(spaced))


def indexed_part(email: str) -> str:
    """The part of a searched email to look up: what precedes the provider, if that is enough.

    The index reads a list for each trigram, and a provider's lists are as long as the table.
    """
    user, at, _ = email.partition("@")
    return user + at if user and has_trigram(user + at) else email
