"""Whether a text is common, and which part of it an index is asked for."""

import pytest

from service.admin.search import Sample, find_rare_part, is_common

ADDRESSES = [(f"user{n}@mail.example", 0.01) for n in range(100, 200)]
NAMES = [("ada lovelace", 0.2), ("grace hopper", 0.004), ("alan turing", 0.796)]


@pytest.mark.parametrize(
    ("text", "common"),
    [
        ("mail.example", True),
        ("user15", True),
        # One in a hundred, or by chance this one alone.
        ("user150@mail.example", False),
        ("user1500@mail.example", False),
        ("Lovelace", True),
        ("Hopper", False),
        ("Babbage", False),
    ],
)
def test_what_more_than_one_of_a_hundred_have_is_common(text: str, common: bool) -> None:
    assert is_common(Sample(ADDRESSES, NAMES), text.casefold(), text) == common


@pytest.mark.parametrize("sample", [Sample(), Sample(ADDRESSES), Sample((), NAMES)])
def test_what_is_not_known_may_be_common(sample: Sample) -> None:
    assert is_common(sample, "babbage", "Babbage")


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
    assert find_rare_part(text, Sample(ADDRESSES)) == part
    assert find_rare_part(text, Sample()) == text
