"""How a text is looked for: whether many accounts may have it, and which part of it is rare.

Where many have it, a page is soon full on a walk through the accounts in their order; where few do,
an index finds them. PostgreSQL chooses by a hundred addresses, and has no bound: of an address that
happens to be one of them it expects ten thousand, and of ``user9`` that they are evenly spread. It
walked through a million accounts, for 0.8 s.

GIN reads the list of each trigram of a pattern, and the list of one that most addresses have, as of
a large provider's domain, is as long as the table. Among a million accounts ``user5000@`` took
17 ms; asked for ``r5000@`` alone, with the whole text compared in what is found, it takes 1.
"""

import functools
import re
import unicodedata
from collections.abc import Iterator, Sequence
from typing import NamedTuple

# A trigram that a larger share of the addresses has is not asked for.
COMMON_SHARE = 0.1
# So many addresses tell which those are.
SAMPLE_MAX = 101
_TRIGRAM = re.compile("[^ ]{3}|[^ ]{2} | [^ ]")


class Sample(NamedTuple):
    """Values that ANALYZE has kept: evenly spread in their order, and of names the most common.

    A hundred of each by default; none before its first run (PostgreSQL manual, pg_stats).
    """

    addresses: Sequence[str] = ()
    names: Sequence[str] = ()


def may_be_common(sample: Sample, address: str, name: str) -> bool:
    """Whether some of the sample have this in the address, or that in the name; or it is not known.

    The names are not where the service does not own the table (PostgreSQL manual, pg_stats).
    """
    name = name.lower()
    return (
        not (sample.addresses and sample.names)
        or any(address in one for one in sample.addresses)
        or any(name in one for one in sample.names)
    )


@functools.lru_cache(maxsize=4 * SAMPLE_MAX)  # as the sample is the same from search to search
def split_words(text: str) -> str:
    """The text, each character in its place, but for a space where pg_trgm sees no word."""
    return "".join(char if unicodedata.category(char)[0] in "LNM" else " " for char in text)


def has_trigram(words: str) -> bool:
    """Whether an index can be asked for what contains these: see pg_trgm, "Index Support"."""
    return bool(_TRIGRAM.search(words))


def find_rare_part(text: str, addresses: Sequence[str]) -> str:
    """The longest part without a common trigram, which none of these has but within the whole.

    The whole, where there is no such part.
    """
    words = split_words(text)
    sample = addresses[:: -(-len(addresses) // SAMPLE_MAX) or 1]
    without = [address for address in addresses if text not in address]
    padded = [f" {split_words(address)} " for address in sample]
    most = COMMON_SHARE * len(padded)
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
