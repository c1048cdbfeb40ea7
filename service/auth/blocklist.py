"""Blocklist of common, breached and predictable passwords (NIST SP 800-63B-4 §3.1.1.2).

``blocklist.bin`` holds digests of the listed passwords. tools/build_blocklist.py writes it and
names its sources. Few listed passwords reach our minimum length. Longer weak passwords repeat or
pad a listed one, or follow a keyboard row. Rules strip these patterns and must account for the
whole password.
"""

import bisect
import functools
import hashlib
import struct
import unicodedata
import zlib
from pathlib import Path

# Magic, entries, bytes per entry, the probe's digest, CRC-32 of the entries.
HEADER = struct.Struct(">8sIB8sI")
MAGIC = b"SHNKBLK1"
PROBE = "²ẞ"  # each step of _fold changes it
SHORT = 4  # every text of this length or less is blocked, so none is listed
LISTED_MAX_LENGTH = 64  # no listed text is longer
RUN = 3  # a shorter sequence may be a coincidence

_PATH = Path(__file__).with_name("blocklist.bin")
_SEPARATORS = str.maketrans("", "", " -_.!?")
_ROWS = """
01234567890123456789 12345678901234567890 00112233445566778899 11223344556677889900
abcdefghijklmnopqrstuvwxyz aabbccddeeffgghhiijjkkllmmnnooppqqrrssttuuvvwwxxyyzz
абвгдежзийклмнопрстуфхцчшщъыьэюя йцукенгшщзхъ фывапролджэ ячсмитьбю
qwertyuiop[] asdfghjkl;' zxcvbnm,./ qwertzuiopü yxcvbnm azertyuiop wxcvbn !@#$%^&*()_+
1qaz 2wsx 3edc 4rfv 5tgb 6yhn 7ujm 8ik, 9ol. 0p;/ 1q2w3e4r5t6y7u8i9o0p q1w2e3r4t5y6u7i8o9p0
qawsedrftgyhujikolp a1b2c3d4e5f6g7h8i9 1a2b3c4d5e6f7g8h9i 102030405060708090
"""
_WALKS = _ROWS + _ROWS[::-1]
_SHORTEST_WALKS = {_WALKS[start : start + RUN] for start in range(len(_WALKS) - RUN + 1)}
WALK_MAX_LENGTH = max(map(len, _WALKS.split()))


def is_blocked(password: str) -> bool:
    """Return whether the password is listed or predictable, ignoring case.

    Separators and trailing digits are ignored too, if at least half of the password is left
    without them. Random passwords are practically never blocked. Raises ValueError if the
    blocklist file is invalid.
    """
    text = _fold(password)
    bare = text.translate(_SEPARATORS)
    forms = {f for f in (text, bare, bare.rstrip("0123456789")) if 2 * len(f) >= len(text)}
    return len(text) <= SHORT or any(map(_is_predictable, forms))


def _is_predictable(text: str) -> bool:
    """Strip repetitions and runs until a listed text or nothing is left. Takes linear time.

    A text too long to be listed loses all runs at its ends at once, and a repetition at least half
    of it, so its length is gone through a few times only.
    """
    ignorable = min(SHORT, len(text) // 4)
    while len(text) > ignorable and not _is_listed(text):
        period = _find_period(text)
        if 2 * period <= len(text):
            text = text[:period]
            continue
        stripped = _strip_run(text)
        while len(stripped) > LISTED_MAX_LENGTH and (rest := _strip_run(stripped)) != stripped:
            stripped = rest
        if stripped == text:
            return False
        text = stripped
    return True


def _find_period(text: str) -> int:
    """Return the least n such that the text repeats its first n characters, the last time perhaps
    in part: its length without its longest border (Knuth, Morris and Pratt).
    """
    borders = [0]
    border = 0
    for char in text[1:]:
        while border and char != text[border]:
            border = borders[border - 1]
        border += char == text[border]
        borders.append(border)
    return len(text) - border


def _strip_run(text: str) -> str:
    """Return the text without the longer of the runs at its ends."""
    head = _run(text[:WALK_MAX_LENGTH], len(text) - len(text.lstrip(text[:1])))
    tail = _run(text[-WALK_MAX_LENGTH:][::-1], len(text) - len(text.rstrip(text[-1:])))
    return text[head:] if head > tail else text[: len(text) - tail]


def _run(start: str, same: int) -> int:
    """Return the length of the longest leading keyboard sequence, or ``same`` if that is longer.

    0 if shorter than RUN.
    """
    walk = RUN if start[:RUN] in _SHORTEST_WALKS else 0
    while 0 < walk < len(start) and start[: walk + 1] in _WALKS:
        walk += 1
    return max(same, walk) if max(same, walk) >= RUN else 0


def _is_listed(text: str) -> bool:
    if len(text) > LISTED_MAX_LENGTH:
        return False
    entries, width = _load()
    wanted, starts = _digest(text, width), range(0, len(entries), width)
    at = bisect.bisect_left(starts, wanted, key=lambda start: entries[start : start + width])
    return entries[at * width : (at + 1) * width] == wanted


@functools.cache
def _load() -> tuple[bytes, int]:
    """Return all digests, sorted and concatenated, and the width of each in bytes."""
    data = _PATH.read_bytes()
    if len(data) < HEADER.size or not data.startswith(MAGIC):
        raise ValueError(f"{_PATH.name} is not a blocklist")
    _, count, width, probe, checksum = HEADER.unpack_from(data)
    entries = data[HEADER.size :]
    if len(entries) != count * width or zlib.crc32(entries) != checksum:
        raise ValueError(f"{_PATH.name} is damaged: its entries do not match its header")
    if probe != _digest(_fold(PROBE), len(probe)):
        raise ValueError(
            f"{_PATH.name} was built with different rules: run tools/build_blocklist.py"
        )
    return entries, width


def _digest(text: str, width: int) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=width).digest()


def _fold(password: str) -> str:
    return unicodedata.normalize("NFKC", password).casefold()
