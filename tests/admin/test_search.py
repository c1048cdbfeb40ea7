"""The part of a search text that is looked up in the trigram index."""

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
def test_email_lookup_uses_the_part_before_the_provider(email: str, part: str) -> None:
    assert indexed_part(email) == part
