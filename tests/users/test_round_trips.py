"""Accepted values are returned as sent (property tests)."""

import itertools
import string
import unicodedata

import pytest
from email_validator import validate_email
from hypothesis import given
from hypothesis import strategies as st

from service.http.fields import EmailAddress, fold_email
from tests.support.clients import Client
from tests.support.factories import PASSWORD, assert_problem, pointers, register

REGISTER = "/api/v1/auth/register"
# The only invisible characters allowed in a name, between non-ASCII characters.
JOINERS = "\u200c\u200d"
_visible = st.characters(exclude_categories=["Cc", "Cf", "Cs", "Zl", "Zp"])
_invisible = st.characters(categories=["Cc", "Cf", "Cs", "Zl", "Zp"], exclude_characters=JOINERS)
_numbers = itertools.count()


@pytest.mark.property
@given(name=st.text(_visible, max_size=200))
async def test_names_are_returned_as_sent(client: Client, name: str) -> None:
    account = await register(client, name=name)
    assert account.profile["name"] == name


@pytest.mark.property
@given(
    before=st.text(_visible, max_size=20), hidden=_invisible, after=st.text(_visible, max_size=20)
)
async def test_names_with_invisible_characters_are_rejected(
    client: Client, before: str, hidden: str, after: str
) -> None:
    body = {"email": "ada@example.com", "password": PASSWORD, "name": before + hidden + after}
    problem = await assert_problem(await client.post(REGISTER, json=body), 422, "invalid_fields")
    assert pointers(problem) == {"#/name"}


# Includes letters whose length, case or normal form changes under Unicode rules.
_local = st.text(f"{string.ascii_letters}{string.digits}éßǅſΣ_+", max_size=20)
_label = st.from_regex(r"[a-zA-Z]([a-zA-Z0-9]{0,10})", fullmatch=True)


@st.composite
def emails(draw: st.DrawFn) -> tuple[str, str]:
    """Local part and domain of an email that a number makes unique."""
    number = next(_numbers)
    local = f"{draw(_local)}.{number}" if draw(st.booleans()) else f"{number}-{draw(_local)}"
    return local.lstrip("."), f"{draw(_label)}.{draw(_label)}.example"


@pytest.mark.property
@given(parts=emails())
async def test_email_keeps_its_local_part_and_lowercases_its_domain(
    client: Client, parts: tuple[str, str]
) -> None:
    local, domain = parts
    account = await register(client, email=f"{local}@{domain}")
    assert account.profile["email"] == unicodedata.normalize("NFC", f"{local}@{domain.lower()}")


@pytest.mark.property
@given(parts=emails())
async def test_email_signs_in_regardless_of_case(client: Client, parts: tuple[str, str]) -> None:
    account = await register(client, email="@".join(parts))
    shouted = {"email": "@".join(parts).upper(), "password": account.password}
    response = await client.post("/api/v1/auth/login", json=shouted)
    assert response.status == 200, await response.text()
    taken = await client.post(REGISTER, json=shouted)
    await assert_problem(taken, 409, "email_taken")


_SPELLINGS = ["straße", "Strasse", "STRAẞE", "κόσμος", "κόσμοσ", "ΚΌΣΜΟΣ", "mıke", "mike", "İ"]


def test_emails_are_equal_if_their_folded_local_parts_and_a_labels_are() -> None:
    folded: dict[tuple[str, str | None], set[str]] = {}
    for local, label in itertools.product(_SPELLINGS, _SPELLINGS):
        email = f"{local}@{label}.example"
        a_labels = validate_email(email, check_deliverability=False).ascii_domain
        equal = unicodedata.normalize("NFC", local.casefold()), a_labels
        folded.setdefault(equal, set()).add(fold_email(EmailAddress().deserialize(email)))
    assert all(len(forms) == 1 for forms in folded.values()), folded
    assert len(set().union(*folded.values())) == len(folded)


_wrong = st.sampled_from(list(' ()<>[]:;,\\"\0\x1f\x7f\u202e\u200b\ud800'))


@pytest.mark.property
@given(parts=emails(), wrong=_wrong, in_domain=st.booleans())
async def test_email_with_an_invalid_character_is_rejected(
    client: Client, parts: tuple[str, str], wrong: str, in_domain: bool
) -> None:
    local, domain = parts
    email = f"{local}@{wrong}{domain}" if in_domain else f"{local}{wrong}a@{domain}"
    body = {"email": email, "password": PASSWORD}
    problem = await assert_problem(await client.post(REGISTER, json=body), 422, "invalid_fields")
    assert pointers(problem) == {"#/email"}
