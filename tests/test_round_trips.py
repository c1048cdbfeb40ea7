"""What is accepted comes back as it was sent, whatever it is (hypothesis)."""

import unicodedata

from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from service.fields import fold_email
from tests.support.clients import Client
from tests.support.factories import PASSWORD, assert_problem, register

REGISTER = "/api/v1/auth/register"
MANY = hypothesis_settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.filter_too_much],
)
_visible = st.characters(exclude_categories=["Cc", "Cf", "Cs", "Zl", "Zp"])


@MANY
@given(name=st.text(_visible, max_size=200))
async def test_names(client: Client, name: str) -> None:
    account = await register(client, name=name)
    assert account.profile["name"] == name


@MANY
@given(name=st.text(st.characters(), max_size=50))
async def test_any_text_is_a_name_or_refused(client: Client, name: str) -> None:
    account = await register(client)
    response = await client.patch("/api/v1/users/me", headers=account.headers, json={"name": name})
    if response.status == 200:
        assert (await response.json())["name"] == name
    else:
        await assert_problem(response, 422, "invalid_fields")


@MANY
@given(
    local=st.from_regex(r"[a-zA-Z0-9éßǅſıΣ]([a-zA-Z0-9éßǅſıΣ.+_-]{0,20}[a-z0-9])?", fullmatch=True),
    domain=st.from_regex(r"[a-zA-Z]([a-zA-Z0-9-]{0,10}[a-zA-Z0-9])?\.[a-z]{2,6}", fullmatch=True),
)
async def test_addresses(client: Client, local: str, domain: str) -> None:
    """The local part is kept, the domain in lower case; however it is cased, it signs in."""
    email = f"{local}@{domain}"
    body = {"email": email, "password": PASSWORD}
    response = await client.post(REGISTER, json=body)
    if response.status == 422:
        return
    if response.status == 409:
        await assert_problem(response, 409, "email_taken")
        return
    stored = (await response.json())["user"]["email"]
    assert stored == unicodedata.normalize("NFC", f"{local}@{domain.lower()}")
    shouted = email.upper()
    if fold_email(shouted) == fold_email(email):
        response = await client.post("/api/v1/auth/login", json={**body, "email": shouted})
        assert response.status == 200, await response.text()
        await assert_problem(
            await client.post(REGISTER, json={**body, "email": shouted}), 409, "email_taken"
        )
