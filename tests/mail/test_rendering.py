"""Mail texts are complete, in the right language, and safe."""

import itertools
from pathlib import Path

import pytest

from service.exceptions import StartError
from service.mail.rendering import BUILT_IN, VALUES, read_templates, render

TEMPLATES = read_templates(None)
SAMPLE = {
    "name": "Ada <Lovelace> & $link",
    "email": "ada@example.com",
    "link": "https://app.example/verify?a=1&b=2#token=abc",
    "minutes": "30",
    "date": "2030-01-31 12:00 UTC",
    "left": "9",
}


def values_of(name: str) -> dict[str, str]:
    return {key: SAMPLE[key] for key in ("name", "email", *VALUES[name])}


@pytest.mark.parametrize(("language", "name"), [*itertools.product(("en", "fr"), VALUES)])
def test_every_mail_contains_its_values(language: str, name: str) -> None:
    mail = render(TEMPLATES, name, language, values_of(name))
    for key in ("name", "email", *VALUES[name]):
        assert SAMPLE[key] in mail.text, key
    assert "&lt;Lovelace&gt; &amp; $link" in mail.html
    assert "<Lovelace>" not in mail.html
    if "link" in VALUES[name]:
        assert 'href="https://app.example/verify?a=1&amp;b=2#token=abc"' in mail.html
    assert f'lang="{language}"' in mail.html
    assert mail.subject
    assert "\n" not in mail.subject
    for part in mail:
        assert "$" not in part.replace(SAMPLE["name"], "").replace("&amp; $link", "")


def test_every_template_file_is_used() -> None:
    files = {str(path.relative_to(BUILT_IN)) for path in BUILT_IN.rglob("*.*")}
    kinds = itertools.product(("en", "fr"), VALUES, ("subject", "txt", "html"))
    assert files == {f"{language}/{name}.{kind}" for language, name, kind in kinds}


@pytest.mark.parametrize(
    ("language", "greeting"),
    [
        ("fr", "Bonjour"),
        ("fr-CA", "Bonjour"),
        ("FR-ca-x-old", "Bonjour"),
        ("en-GB", "Hello"),
        ("tlh", "Hello"),
        ("f", "Hello"),
        (None, "Hello"),
    ],
)
def test_nearest_language_is_chosen(language: str | None, greeting: str) -> None:
    mail = render(TEMPLATES, "password_changed", language, values_of("password_changed"))
    assert mail.text.startswith(greeting)


@pytest.mark.parametrize(
    ("name", "greeted"),
    [
        ("Ada\r\nBcc: eve@example.com", "ada@example.com"),
        ("Ada\r\nBcc eve", "Ada Bcc eve"),
        ("Ada\u2028\0\x85Eve\ud800", "Ada Eve"),
        ("Martin Luther King Jr.", "Martin Luther King Jr."),
        ("نام\u200cخانوادگی", "نام\u200cخانوادگی"),
        ("", "ada@example.com"),
        ("See spam.example", "ada@example.com"),
        ("See spam\u3002example", "ada@example.com"),
        ("https://spam", "ada@example.com"),
        ("You won a prize, call now! " * 3, "ada@example.com"),
    ],
)
def test_suspicious_name_is_cleaned_or_replaced(name: str, greeted: str) -> None:
    mail = render(TEMPLATES, "password_changed", "en", {"name": name, "email": "ada@example.com"})
    assert mail.text.startswith(f"Hello {greeted},\n")


def write_templates(directory: Path, files: dict[str, str]) -> Path:
    for name, content in files.items():
        (directory / name).parent.mkdir(exist_ok=True)
        (directory / name).write_text(content)
    return directory


def test_custom_template_replaces_the_built_in_one(tmp_path: Path) -> None:
    own = write_templates(tmp_path, {"en/password_changed.subject": "Acme: \n $name, $$1 off\n"})
    mail = render(
        read_templates(own), "password_changed", "en", {"name": "Ada\r\nX-Eve", "email": "a@b"}
    )
    assert mail.subject == "Acme: Ada X-Eve, $1 off"
    assert mail.text.startswith("Hello Ada X-Eve,")


def test_byte_order_mark_of_a_template_gets_into_no_mail(tmp_path: Path) -> None:
    parts = {f"en/password_changed.{kind}": "Hi $name" for kind in ("subject", "txt", "html")}
    own = write_templates(tmp_path, parts)
    for name in parts:
        (own / name).write_text(parts[name], encoding="utf-8-sig")
    mail = render(read_templates(own), "password_changed", "en", {"name": "Ada", "email": "a@b"})
    assert mail == ("Hi Ada", "Hi Ada", "Hi Ada")


def test_custom_templates_can_add_a_language(tmp_path: Path) -> None:
    own = write_templates(
        tmp_path,
        {
            f"pt-BR/password_changed.{kind}": f"Oi $name ({kind})"
            for kind in ("subject", "txt", "html")
        },
    )
    templates = read_templates(own)
    values = {"name": "Ada", "email": "a@b"}
    mail = render(templates, "password_changed", "pt-BR", values)
    assert mail == ("Oi Ada (subject)", "Oi Ada (txt)", "Oi Ada (html)")
    assert render(templates, "password_changed", "pt", values).text.startswith("Hello")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"en/verify_email.txt": "$link $password"}, "en/verify_email.txt: expected $ only"),
        ({"en/password_changed.txt": "$link"}, "en/password_changed.txt: expected $ only"),
        ({"en/verify_email.txt": "5 $ off"}, "en/verify_email.txt: expected $ only"),
        ({"de/verify_email.txt": "$link"}, "de/verify_email is missing its subject, html"),
    ],
)
def test_broken_template_is_rejected_at_startup(
    tmp_path: Path, files: dict[str, str], message: str
) -> None:
    with pytest.raises(StartError, match="^MAIL_TEMPLATES_DIR: ") as raised:
        read_templates(write_templates(tmp_path, files))
    assert message in str(raised.value)


def test_template_that_is_not_utf_8_is_rejected_at_startup(tmp_path: Path) -> None:
    own = write_templates(tmp_path, {"fr/verify_email.subject": ""})
    (own / "fr/verify_email.subject").write_bytes("Vérifiez".encode("latin-1"))
    with pytest.raises(StartError, match="^MAIL_TEMPLATES_DIR: cannot be read"):
        read_templates(own)
