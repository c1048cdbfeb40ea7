"""Whether a text is looked for by a walk or an index, and which part of it the index is asked for.

Where many have it, a page is soon full on a walk through the accounts in their order; where few
do, an index finds them. PostgreSQL chooses by the same sample, but its walk has no end: ``user9``,
whose addresses come last, took it through a million accounts, for 0.8 s.

GIN reads the list of each trigram of a pattern, and the list of one that most addresses have, as of
a large provider's domain, is as long as the table. Among a million accounts ``user5000@`` took
20 ms; asked for ``r5000@`` alone, with the whole text compared in what is found, it takes 3.
"""

import functools
import re
import unicodedata
from collections.abc import Iterator, Sequence
from typing import NamedTuple, TypeAlias

# So many accounts are walked through at most for each that a page has room for.
WALK_PER_ROW = 100
# A trigram that a larger share of the addresses has is not asked for.
COMMON_TRIGRAM_SHARE = 0.1
# So many addresses tell which those are, which takes a millisecond.
SAMPLE_MAX = 101
_TRIGRAM = re.compile("[^ ]{3}|[^ ]{2} | [^ ]")
# Texts, each with the share of the accounts that it stands for, from 0 to 1.
Shares: TypeAlias = Sequence[tuple[str, float]]


class Sample(NamedTuple):
    """What ANALYZE has kept: the most common texts, and others evenly spread in their order.

    A hundred of each by default; none before its first run, and no names where the service does not
    own the table (PostgreSQL manual, pg_stats).
    """

    addresses: Shares = ()
    names: Shares = ()


def is_common(sample: Sample, address: str, name: str) -> bool:
    """Whether a walk may be expected to fill its page; True where that is not known."""
    if not (sample.addresses and sample.names):
        return True
    share = max(_share(address, sample.addresses), _share(name.lower(), sample.names))
    return share * WALK_PER_ROW > 1


def _share(text: str, texts: Shares) -> float:
    return sum(share for one, share in texts if text in one)


@functools.lru_cache(maxsize=4 * SAMPLE_MAX)  # as the sample is the same from search to search
def split_words(text: str) -> str:
    """The text, each character in its place, but for a space where pg_trgm sees no word."""
    return "".join(char if unicodedata.category(char)[0] in "LNM" else " " for char in text)


def has_trigram(words: str) -> bool:
    """Whether an index can be asked for what contains these: see pg_trgm, "Index Support"."""
    return bool(_TRIGRAM.search(words))


def find_rare_part(text: str, sample: Sample) -> str:
    """The longest part of an address that has no common trigram, or the whole where there is none.

    No address of the sample has that part, except those that have all of the text.
    """
    words = split_words(text)
    addresses = [address for address, _ in sample.addresses]
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
