"""Which part of an address an index is asked for."""

import pytest

from service.admin.search import find_rare_part

ADDRESSES = [f"user{n}@mail.example" for n in range(100, 200)]


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("user5000@mail.example", "er5000@"),
        ("ada.lovelace@mail.example", "ada.lovelace@"),
        ("ada@other.test", "ada@other.test"),
        # One of the sample itself.
        ("user150@mail.example", "r150@"),
        # All of it is common; and where no address is known, nothing is.
        ("mail.example", "mail.example"),
    ],
)
def test_the_part_of_an_address_that_others_do_not_have(text: str, part: str) -> None:
    assert find_rare_part(text, ADDRESSES) == part
    assert find_rare_part(text, ()) == text
