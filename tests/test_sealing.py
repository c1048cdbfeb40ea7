"""Sealed bytes open only intact, in their own place and for their own purpose."""

import pytest

from service.sealing import SealError, seal, unseal

KEY = "a secret key of the tests, long enough to be taken"


def test_sealed_bytes_open_in_their_own_place() -> None:
    assert unseal((KEY,), "mail", "row 1", seal(KEY, "mail", "row 1", b"secret")) == b"secret"


@pytest.mark.parametrize(
    ("key", "purpose", "place"),
    [
        (KEY[::-1], "mail", "row 1"),
        (KEY, "answers", "row 1"),
        (KEY, "mail", "row 2"),
    ],
    ids=["another key", "another purpose", "another row"],
)
def test_sealed_bytes_open_nowhere_else(key: str, purpose: str, place: str) -> None:
    with pytest.raises(SealError):
        unseal((key,), purpose, place, seal(KEY, "mail", "row 1", b"secret"))


@pytest.mark.parametrize("keys", [(KEY, KEY[::-1]), (KEY[::-1], KEY)])
def test_either_of_two_keys_opens(keys: tuple[str, ...]) -> None:
    sealed = seal(KEY, "mail", "row 1", b"secret")
    assert unseal(keys, "mail", "row 1", sealed) == b"secret"
    with pytest.raises(SealError):
        unseal(keys, "mail", "row 2", sealed)


def test_same_bytes_are_sealed_differently_each_time() -> None:
    assert seal(KEY, "mail", "row 1", b"secret") != seal(KEY, "mail", "row 1", b"secret")


@pytest.mark.parametrize("place", [0, 12, -1])
def test_changed_byte_is_detected(place: int) -> None:
    sealed = bytearray(seal(KEY, "mail", "row 1", b"secret"))
    sealed[place] ^= 1
    with pytest.raises(SealError):
        unseal((KEY,), "mail", "row 1", bytes(sealed))


@pytest.mark.parametrize("length", [0, 1, 7, 8, 12, 27])
def test_cut_bytes_are_detected(length: int) -> None:
    sealed = seal(KEY, "mail", "row 1", b"secret")[:length]
    with pytest.raises(SealError):
        unseal((KEY,), "mail", "row 1", sealed)
