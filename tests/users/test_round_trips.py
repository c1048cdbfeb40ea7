"""What is accepted comes back as it was sent, whatever it is (hypothesis)."""

import itertools
import string
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.clients import Client
from tests.support.factories import PASSWORD, assert_problem, pointers, register

REGISTER = "/api/v1/auth/register"
# Of what cannot be seen, only these two may be in a name, between characters outside of ASCII.
JOINERS = "\u200c\u200d"
_visible = st.characters(exclude_categories=["Cc", "Cf", "Cs", "Zl", "Zp"])
_invisible = st.characters(categories=["Cc", "Cf", "Cs", "Zl", "Zp"], exclude_characters=JOINERS)
_numbers = itertools.count()


@pytest.mark.property
@given(name=st.text(_visible, max_size=200))
async def test_names_come_back_as_they_were_sent(client: Client, name: str) -> None:
    account = await register(client, name=name)
    assert account.profile["name"] == name


@pytest.mark.property
@given(
    before=st.text(_visible, max_size=20), hidden=_invisible, after=st.text(_visible, max_size=20)
)
async def test_names_with_what_cannot_be_seen_are_refused(
    client: Client, before: str, hidden: str, after: str
) -> None:
    body = {"email": "ada@example.com", "password": PASSWORD, "name": before + hidden + after}
    problem = await assert_problem(await client.post(REGISTER, json=body), 422, "invalid_fields")
    assert pointers(problem) == {"#/name"}


# What changes its length, its case or its form under Unicode's rules, and what does not.
_local = st.text(f"{string.ascii_letters}{string.digits}éßǅſΣ_+", max_size=20)
_label = st.from_regex(r"[a-zA-Z]([a-zA-Z0-9]{0,10})", fullmatch=True)


@st.composite
def addresses(draw: st.DrawFn) -> tuple[str, str]:
    """Local part and domain of an address that nobody has: the number in it is in no other."""
    number = next(_numbers)
    local = f"{draw(_local)}.{number}" if draw(st.booleans()) else f"{number}-{draw(_local)}"
    return local.lstrip("."), f"{draw(_label)}.{draw(_label)}.example"


@pytest.mark.property
@given(parts=addresses())
async def test_an_address_keeps_its_local_part_and_has_its_domain_in_lower_case(
    client: Client, parts: tuple[str, str]
) -> None:
    local, domain = parts
    account = await register(client, email=f"{local}@{domain}")
    assert account.profile["email"] == unicodedata.normalize("NFC", f"{local}@{domain.lower()}")


@pytest.mark.property
@given(parts=addresses())
async def test_an_address_signs_in_however_it_is_cased(
    client: Client, parts: tuple[str, str]
) -> None:
    account = await register(client, email="@".join(parts))
    shouted = {"email": "@".join(parts).upper(), "password": account.password}
    response = await client.post("/api/v1/auth/login", json=shouted)
    assert response.status == 200, await response.text()
    taken = await client.post(REGISTER, json=shouted)
    await assert_problem(taken, 409, "email_taken")


_wrong = st.sampled_from(list(' ()<>[]:;,\\"\0\x1f\x7f\u202e\u200b\ud800'))


@pytest.mark.property
@given(parts=addresses(), wrong=_wrong, in_domain=st.booleans())
async def test_an_address_with_a_character_that_none_has_is_refused(
    client: Client, parts: tuple[str, str], wrong: str, in_domain: bool
) -> None:
    local, domain = parts
    email = f"{local}@{wrong}{domain}" if in_domain else f"{local}{wrong}a@{domain}"
    body = {"email": email, "password": PASSWORD}
    problem = await assert_problem(await client.post(REGISTER, json=body), 422, "invalid_fields")
    assert pointers(problem) == {"#/email"}
