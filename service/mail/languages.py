"""The language of a mail, chosen among those that have templates."""

import re
from collections.abc import Collection, Iterator

LAST_RESORT = "en"
# More than any browser sends.
_RANGES_MAX = 50
# RFC 9110 §12.4.2, §12.5.4. No language needs more than eight subtags (RFC 5646 §4.4.1), and each
# of them is tried with each shorter prefix.
_RANGE = re.compile(
    r"(?P<range>\*|[A-Za-z]{1,8}(?:-[A-Za-z0-9]{1,8}){0,7})"
    r"(?:[ \t]*;[ \t]*[qQ]=(?P<q>0(?:\.[0-9]{0,3})?|1(?:\.0{0,3})?))?"
)


def fall_back(tag: str) -> Iterator[str]:
    """Yield the language tag in lower case and ever shorter prefixes of it (RFC 4647 §3.4)."""
    tag = tag.lower()
    while tag:
        yield tag
        tag = tag.rpartition("-")[0]


def choose_language(accepted: str, available: Collection[str]) -> str | None:
    """Return which of the languages an Accept-Language header (RFC 9110 §12.5.4) prefers, if any.

    ``available`` holds tags in lower case. ``*`` means English, or else the first that the header
    does not name.
    """
    weights: dict[str, float] = {}
    for part in accepted.split(",", _RANGES_MAX)[:_RANGES_MAX]:
        match = _RANGE.fullmatch(part.strip(" \t"))
        if match is not None:
            weights.setdefault(match["range"].lower(), float(match["q"] or 1))

    def named(tag: str) -> float | None:
        return next((weights[each] for each in fall_back(tag) if each in weights), None)

    for range_, weight in sorted(weights.items(), key=lambda item: -item[1]):
        if weight == 0:
            break
        if range_ == "*":
            candidates = [tag for tag in (LAST_RESORT, *sorted(available)) if named(tag) is None]
        else:
            candidates = [tag for tag in fall_back(range_) if named(tag) != 0]
        for tag in candidates:
            if tag in available:
                return tag
    return None
