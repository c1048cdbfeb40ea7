"""What an index is asked for when addresses are searched: the part of the text that is rare.

GIN reads the list of each trigram of a pattern, and the list of one that most addresses have, as of
a large provider's domain, is as long as the table. Among a million accounts ``user5000@`` took
17 ms; asked for ``r5000@`` alone, with the whole text compared in what is found, it takes 1.
"""

import functools
import re
import unicodedata
from collections.abc import Iterator, Sequence

# What more of the addresses have is left out.
COMMON_SHARE = 0.05
_TRIGRAM = re.compile("[^ ]{3}|[^ ]{2} | [^ ]")


@functools.lru_cache(maxsize=512)  # as the sample is the same from search to search
def split_words(text: str) -> str:
    """The text, each character in its place, but for a space where pg_trgm sees no word."""
    return "".join(char if unicodedata.category(char)[0] in "LNM" else " " for char in text)


def has_trigram(words: str) -> bool:
    """Whether an index can be asked for what contains these: see pg_trgm, "Index Support"."""
    return bool(_TRIGRAM.search(words))


def find_rare_part(text: str, sample: Sequence[str]) -> str:
    """The longest part without a trigram that is common in the sample; the whole without such."""
    words = split_words(text)
    others = [f" {split_words(other)} " for other in sample]
    most = COMMON_SHARE * len(others)
    best, start = "", 0
    for end in range(2, len(words) + 1):
        for trigram in _trigrams_until(words, end):
            if sum(trigram in other for other in others) > most:
                start = max(start, end - len(trigram) + 1)
        if end - start > len(best) and has_trigram(words[start:end]):
            best = text[start:end]
    return best or text


def _trigrams_until(words: str, end: int) -> Iterator[str]:
    """Those that end there; that of a word's beginning is a space and its first letter."""
    if end > 2 and " " not in words[end - 3 : end - 1]:
        yield words[end - 3 : end]
    if words[end - 2] == " " != words[end - 1]:
        yield words[end - 2 : end]
