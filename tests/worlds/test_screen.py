"""What the streaming parser would misread is found, wherever the document is cut into chunks."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.worlds.screen import LONE_SURROGATE, LONG_NUMBER, Screen

ESCAPES = [b"\\ud800", b"\\uDBFF", b"\\udc00", b"\\uDfff", b"\\\\", b'\\"', b"\\u0041", b"\\n"]
_texts = st.lists(st.sampled_from([*ESCAPES, b"a", b"u", b"d800", b"9" * 401]), max_size=8)
_sizes = st.lists(st.integers(1, 9), min_size=1, max_size=9)


def screen(document: bytes, sizes: list[int]) -> str | None:
    """Return the first fault of a document that arrives in chunks of these sizes."""
    looking, at, turn = Screen(), 0, 0
    while at < len(document):
        size = sizes[turn % len(sizes)]
        if fault := looking.find_fault(document[at : at + size]):
            return fault
        at, turn = at + size, turn + 1
    return None


@pytest.mark.property
@given(text=_texts, sizes=_sizes)
def test_lone_surrogates_are_found_and_nothing_else(text: list[bytes], sizes: list[int]) -> None:
    document = b'{"x": "' + b"".join(text) + b'"}'
    lone = any("\ud800" <= char <= "\udfff" for char in json.loads(document)["x"])
    assert screen(document, sizes) == (LONE_SURROGATE if lone else None)


@pytest.mark.property
@given(text=_texts, sizes=_sizes)
def test_long_numbers_are_found_outside_of_texts(text: list[bytes], sizes: list[int]) -> None:
    plain = b"".join(part for part in text if not part.startswith(b"\\u"))
    for digits in (400, 401):
        document = b'["' + plain + b'", ' + b"7" * digits + b', "' + plain + b'"]'
        assert screen(document, sizes) == (LONG_NUMBER if digits > 400 else None)
