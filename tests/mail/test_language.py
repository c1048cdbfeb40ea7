"""The language of a mail: the owner's preference, or else the one their browser asks for."""

import pytest

from service.mail.languages import choose_language
from service.settings import Settings
from tests.support.clients import Client
from tests.support.factories import PASSWORD, register, register_as
from tests.support.mailbox import next_mail
from tests.support.steps import send

ADA = "ada@example.com"
FRENCH = {"Accept-Language": "de-CH, fr-CA;q=0.9, en;q=0.5"}
VERIFY = {"en": "Confirm your email address", "fr": "Confirmez votre adresse e-mail"}
RESET = {"en": "Choose a new password", "fr": "Choisissez un nouveau mot de passe"}


async def subject_of_next(settings: Settings) -> str:
    return str((await next_mail(settings.data_dir, ADA))["Subject"])


async def test_first_mail_is_in_the_language_that_the_browser_asks_for(
    client: Client, settings: Settings, mail_at_once: None
) -> None:
    body = {"email": ADA, "password": PASSWORD, "name": "Ada"}
    await send(client, "POST", "/auth/register", body, headers=FRENCH)
    assert await subject_of_next(settings) == VERIFY["fr"]


@pytest.mark.parametrize(
    ("path", "subjects"), [("/auth/password/forgot", RESET), ("/auth/email/verify/resend", VERIFY)]
)
async def test_requested_mail_is_in_the_language_that_the_browser_asks_for(
    client: Client,
    settings: Settings,
    mail_at_once: None,
    path: str,
    subjects: dict[str, str],
) -> None:
    await register(client, email=ADA)
    assert await subject_of_next(settings) == VERIFY["en"]
    await send(client, "POST", path, {"email": ADA}, headers=FRENCH)
    assert await subject_of_next(settings) == subjects["fr"]


async def test_preference_comes_before_the_browser(
    client: Client, settings: Settings, mail_at_once: None
) -> None:
    account = await register(client, email=ADA)
    assert await subject_of_next(settings) == VERIFY["en"]
    await send(client, "PATCH", "/users/me", {"settings": {"language": "en"}}, by=account)
    await send(client, "POST", "/auth/password/forgot", {"email": ADA}, headers=FRENCH)
    assert await subject_of_next(settings) == RESET["en"]


async def test_mail_to_an_owner_is_not_in_the_language_of_an_administrator(
    client: Client, settings: Settings, mail_at_once: None
) -> None:
    admin = await register_as(client, "admin")
    account = await register(client, email=ADA)
    assert await subject_of_next(settings) == VERIFY["en"]
    path = f"/users/{account.profile['id']}/password-reset"
    response = await send(client, "POST", path, by=admin, headers=FRENCH)
    assert response.status == 202
    assert await subject_of_next(settings) == RESET["en"]


async def test_owners_own_change_is_in_the_language_of_their_browser(
    client: Client, settings: Settings, mail_at_once: None
) -> None:
    account = await register(client, email=ADA)
    assert await subject_of_next(settings) == VERIFY["en"]
    body = {"current_password": PASSWORD, "password": f"{PASSWORD}, and another"}
    await send(client, "POST", "/users/me/password", body, by=account, headers=FRENCH)
    assert await subject_of_next(settings) == "Votre mot de passe a été changé"


@pytest.mark.parametrize(
    ("accepted", "chosen"),
    [
        ("fr", "fr"),
        ("FR-ca", "fr"),
        ("de, fr;q=0.5", "fr"),
        ("en;q=0.2, fr;q=0.9", "fr"),
        ("en, fr", "en"),
        ("fr;q=0.5, en;q=0.5", "fr"),
        ("fr ; Q=0.501 , en ;q=0.5", "fr"),
        ("pt", None),
        ("pt-br", "pt-br"),
        ("pt-BR-x-old", "pt-br"),
        ("zh-Hant-TW", None),
        ("fr;q=0", None),
        ("fr;q=0, fr-CA", None),
        ("de, *;q=0.1", "en"),
        ("*", "en"),
        ("en;q=0, *", "fr"),
        ("en;q=0, fr;q=0.0, *;q=0.4", "pt-br"),
        ("fr;q=0.1, *", "en"),
        ("*;q=0", None),
        ("de", None),
        ("", None),
        (", ,;q=1,fr", "fr"),
        ("fr;q=2, en;q=0.1", "en"),
        ("fr;q=0.1234, en;q=0.1", "en"),
        ("fr;level=1, en;q=0.1", "en"),
        ("../fr, ${en}, \x00, é", None),
        ("de, " * 2000 + "fr", None),
    ],
)
def test_accept_language_is_read_as_rfc_9110_says(accepted: str, chosen: str | None) -> None:
    assert choose_language(accepted, {"en", "fr", "pt-br"}) == chosen
