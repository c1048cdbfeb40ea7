"""Search text that a trigram index can look up (PostgreSQL's pg_trgm, "Index Support")."""

import re
import unicodedata

_TRIGRAM = re.compile("[^ ]{3}|[^ ]{2} | [^ ]")


def has_trigram(text: str) -> bool:
    """Return whether the index can find values that contain the text.

    A word consists of letters and digits, not of other numeric characters such as ½. Marks count
    as part of a word here. In pg_trgm only some do, and Python cannot tell which.
    """
    kinds = map(unicodedata.category, text)
    words = (kind[0] in "LM" or kind in ("Nd", "Nl") for kind in kinds)
    spaced = "".join(char if word else " " for char, word in zip(text, words, strict=True))
    return bool(_TRIGRAM.search(spaced))


def indexed_part(email: str) -> str:
    """Return the part of a searched email to look up in the trigram index.

    It ends at the @ if that much has a trigram; otherwise it is the whole email. The index reads a
    posting list per trigram, and the lists of a common domain are as long as the table.
    """
    user, at, _ = email.partition("@")
    return user + at if user and has_trigram(user + at) else email
