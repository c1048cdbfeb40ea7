"""Whether accounts are walked through for a text, and which part of its text an index is asked for."""

import pytest

from service.admin.search import Sample, find_rare_part, is_met_soon

ADDRESSES = [(f"user{n}@mail.example", 0.01) for n in range(100, 200)]
NAMES = [("ada lovelace", 0.2), ("grace hopper", 0.004), ("alan turing", 0.796)]


@pytest.mark.parametrize(
    ("text", "accounts", "soon"),
    [
        # All have it: the first ones are a page, but of a table that is no longer than that.
        ("mail.example", 1_000, True),
        ("mail.example", 50, False),
        # One in ten: 510 are walked through, or as many are found.
        ("user15", 6_000, True),
        ("user15", 5_000, False),
        # One in a hundred, or by chance this one alone: the walk may end before it has met 51.
        ("user150@mail.example", 1_000_000, False),
        ("user1500@mail.example", 1_000_000, False),
        ("Lovelace", 2_000, True),
        ("Hopper", 2_000, False),
        ("Babbage", 1_000_000, False),
    ],
)
def test_a_walk_is_for_what_it_meets_before_an_index_has_found_all(
    text: str, accounts: int, soon: bool
) -> None:
    assert is_met_soon(Sample(ADDRESSES, NAMES, accounts), text.casefold(), text, limit=51) == soon


@pytest.mark.parametrize("sample", [Sample(), Sample(ADDRESSES), Sample((), NAMES)])
def test_a_walk_is_for_what_is_not_known(sample: Sample) -> None:
    assert is_met_soon(sample, "babbage", "Babbage", limit=51)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("user5000@mail.example", "er5000@"),
        ("ada.lovelace@mail.example", "ada.lovelace@"),
        ("ada@other.test", "ada@other.test"),
        # All of it is common; and where no address is known, nothing is.
        ("mail.example", "mail.example"),
    ],
)
def test_the_part_of_an_address_that_others_do_not_have(text: str, part: str) -> None:
    assert find_rare_part(text, Sample(ADDRESSES)) == part
    assert find_rare_part(text, Sample()) == text
