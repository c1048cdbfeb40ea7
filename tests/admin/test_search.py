"""What the index of trigrams is asked for."""

import pytest

from service.admin.search import indexed_part


@pytest.mark.parametrize(
    ("email", "part"),
    [
        ("user5000@mail.example", "user5000@"),
        ("ad@mail.example", "ad@"),
        ("a@mail.example", "a@mail.example"),
        ("@mail.example", "@mail.example"),
        ("user5000", "user5000"),
    ],
)
def test_the_index_is_asked_for_what_precedes_the_provider(email: str, part: str) -> None:
    assert indexed_part(email) == part
