"""Which part of a text that addresses are to contain an index is asked for.

GIN reads the list of each trigram of a pattern, and the list of one that most addresses have, as of
a large provider's domain, is as long as the table. Among a million accounts ``user5000@`` took
20 ms; asked for ``r5000@`` alone, with the whole text compared in what is found, it takes 3.
"""

import functools
import re
import unicodedata
from collections.abc import Iterator, Sequence

# A trigram that a larger share of the addresses has is not asked for.
COMMON_TRIGRAM_SHARE = 0.1
# So many addresses tell which those are: to go through them takes a millisecond.
SAMPLE_MAX = 101
_TRIGRAM = re.compile("[^ ]{3}|[^ ]{2} | [^ ]")


@functools.lru_cache(maxsize=4 * SAMPLE_MAX)  # as the sample is the same from search to search
def split_words(text: str) -> str:
    """The text, each character in its place, but for a space where pg_trgm sees no word.

    That has letters and digits, and no other numbers, such as ½. Marks are taken for part of their
    word; to pg_trgm some are and some are not, which Python cannot tell.
    """
    kinds = map(unicodedata.category, text)
    words = (kind[0] in "LM" or kind in ("Nd", "Nl") for kind in kinds)
    return "".join(char if is_word else " " for char, is_word in zip(text, words, strict=True))


def has_trigram(words: str) -> bool:
    """Whether an index can be asked for what contains these: see pg_trgm, "Index Support"."""
    return bool(_TRIGRAM.search(words))


def find_rare_part(text: str, addresses: Sequence[str]) -> str:
    """The longest part of an address that has no common trigram, or the whole where there is none.

    None of the addresses, which are a sample of all, has that part, except those that have all of
    the text.
    """
    words = split_words(text)
    without = [address for address in addresses if text not in address]
    padded = [f" {split_words(address)} " for address in addresses]
    most = COMMON_TRIGRAM_SHARE * len(padded)
    best, start = "", 0
    for end in range(2, len(words) + 1):
        for trigram in _trigrams_until(words, end):
            if sum(trigram in one for one in padded) > most:
                start = max(start, end - len(trigram) + 1)
        part = text[start:end]
        if (
            len(part) > len(best)
            and has_trigram(words[start:end])
            and not any(part in address for address in without)
        ):
            best = part
    return best or text


def _trigrams_until(words: str, end: int) -> Iterator[str]:
    """The trigrams that end there; a word's first one is a space and its first letter here."""
    if end > 2 and " " not in words[end - 3 : end - 1]:
        yield words[end - 3 : end]
    if words[end - 2] == " " != words[end - 1]:
        yield words[end - 2 : end]
