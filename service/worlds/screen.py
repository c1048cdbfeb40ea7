"""What the streaming parser would take for something else, found while a document arrives.

It replaces a lone surrogate with other characters, fails on an integer of too many digits, and
keeps a text of any length in memory.
"""

import re

from service.http.fields import NUMBER_MAX_CHARS

LONE_SURROGATE = "The body has a lone surrogate, which is not valid I-JSON (RFC 7493)."
LONG_TEXT = "The body has a text that is longer than any field may be."
LONG_NUMBER = f"The body has a number of more than {NUMBER_MAX_CHARS} characters."
# Longer than the longest text of a world, in any script and with JSON's escapes.
TEXT_MAX_BYTES = 1_000_000
_LONE = re.compile(
    rb"\\u[dD](?:"
    rb"[89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F])"
    rb"|(?<!\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD])[c-fC-F])"
)
# What may go on in the next chunk: an escape, or the first one of a pair; a number.
_UNFINISHED = re.compile(rb"(?:\\u[dD][89abAB][0-9a-fA-F]{2})?(?:\\(?:u[0-9a-fA-F]{0,3})?)?\Z")
_UNFINISHED_MAX_BYTES = 11
_END_OF_NUMBER = re.compile(rb"[-+.0-9eE]*\Z")
_LONG_NUMBER = re.compile(rb"[-+.0-9eE]{%d}" % (NUMBER_MAX_CHARS + 1))


class Screen:
    """Looks at the chunks of a JSON document, one after the other."""

    def __init__(self) -> None:
        self.rest = self.number = b""
        self.text_length = 0
        self.in_text = False

    def find_fault(self, chunk: bytes) -> str | None:
        """Return what is wrong with the document up to here, or None."""
        # Without escaped backslashes, each backslash begins an escape.
        json = (self.rest + chunk).replace(b"\\\\", b"__")
        unfinished = _UNFINISHED.search(json[-_UNFINISHED_MAX_BYTES:])
        assert unfinished is not None  # noqa: S101
        self.rest = unfinished[0]
        json = json.removesuffix(self.rest)
        if _LONE.search(json):
            return LONE_SURROGATE
        pieces = json.replace(b'\\"', b"").split(b'"')
        if self._has_long_text(pieces):
            return LONG_TEXT
        return LONG_NUMBER if self._has_long_number(pieces) else None

    def _has_long_text(self, pieces: list[bytes]) -> bool:
        """Return whether a text, or what is between two texts, is too long to be in memory."""
        lengths = [len(piece) for piece in pieces]
        lengths[0] += self.text_length
        self.text_length = lengths[-1]
        return max(lengths) > TEXT_MAX_BYTES

    def _has_long_number(self, pieces: list[bytes]) -> bool:
        bare = pieces[self.in_text :: 2]
        if not self.in_text:
            bare[0] = self.number + bare[0]
        self.in_text ^= len(pieces) % 2 == 0
        found = _LONG_NUMBER.search(b'"'.join(bare)) is not None
        end = b"" if self.in_text else bare[-1][-NUMBER_MAX_CHARS:]
        number = _END_OF_NUMBER.search(end)
        assert number is not None  # noqa: S101
        self.number = number[0]
        return found
