"""Mail templates: files in ``templates/<language>/``, which the operator's own files override."""

import html
import itertools
import re
from collections.abc import Mapping
from pathlib import Path
from string import Template
from typing import NamedTuple, TypeAlias

from aiohttp import web

from service.exceptions import StartError
from service.mail.languages import LAST_RESORT, fall_back
from service.mail.message import one_line

MAIL_TEMPLATES: web.AppKey["Templates"] = web.AppKey("mail_templates")

BUILT_IN = Path(__file__).with_name("templates")
NAME_MAX_LENGTH = 64

# The values of each mail, in addition to ``name`` and ``email``, which every mail has.
VALUES: Mapping[str, frozenset[str]] = {
    "verify_email": frozenset({"link", "date"}),
    "password_reset": frozenset({"link", "minutes"}),
    "password_changed": frozenset(),
    "password_removed": frozenset(),
    "email_change": frozenset({"link", "date"}),
    "email_changed": frozenset({"link", "date"}),
    "account_exists": frozenset(),
    "second_factor_added": frozenset(),
    "second_factor_removed": frozenset(),
    "second_factor_locked": frozenset(),
    "recovery_codes_replaced": frozenset(),
    "recovery_code_used": frozenset({"left"}),
    "account_deletion": frozenset({"date"}),
    "account_deletion_by_admin": frozenset({"date"}),
}
# Text that mail programs may turn into a link. IDNA treats ideographic full stops as dots.
_LIKE_A_LINK = re.compile(r"[.:/@\u3002\uff0e\uff61]\S")


class MailTemplate(NamedTuple):
    """The three files of one mail."""

    subject: Template
    text: Template
    html: Template


class Rendered(NamedTuple):
    """A rendered mail. The subject is one line; values in ``html`` are escaped."""

    subject: str
    text: str
    html: str


# By lower-case language tag and template name.
Templates: TypeAlias = Mapping[tuple[str, str], MailTemplate]


def read_templates(own: Path | None) -> Templates:
    """Read all templates in all languages; files in ``own`` override the built-in ones.

    Raises StartError if a template cannot be read, is incomplete, or uses a value that its mail
    does not have. Checking at start keeps such errors out of requests.
    """
    roots = [root for root in (own, BUILT_IN) if root is not None]
    try:
        languages = {path.name for root in roots for path in root.iterdir() if path.is_dir()}
        found = {}
        for language, name in itertools.product(sorted(languages), VALUES):
            parts = {
                kind: _read_part(roots, Path(language, f"{name}.{kind}"), VALUES[name])
                for kind in ("subject", "txt", "html")
            }
            have = [part for part in parts.values() if part is not None]
            if len(have) == len(parts):
                found[language.lower(), name] = MailTemplate(*have)
            elif have:
                missing = ", ".join(kind for kind, part in parts.items() if part is None)
                raise StartError(f"MAIL_TEMPLATES_DIR: {language}/{name} is missing its {missing}")
        return found
    except (OSError, UnicodeDecodeError) as error:
        raise StartError(f"MAIL_TEMPLATES_DIR: cannot be read ({error})") from None


def _read_part(roots: list[Path], file: Path, values: frozenset[str]) -> Template | None:
    path = next((root / file for root in roots if (root / file).is_file()), None)
    if path is None:
        return None
    # Some editors begin a file with a byte order mark.
    template = Template(path.read_text(encoding="utf-8-sig"))
    known = {"name", "email", *values}
    if not template.is_valid() or not known.issuperset(template.get_identifiers()):
        names = ", ".join(f"${name}" for name in sorted(known))
        raise StartError(f"MAIL_TEMPLATES_DIR: {file}: expected $ only in {names} and $$")
    return template


def render(
    templates: Templates, name: str, language: str | None, values: Mapping[str, str]
) -> Rendered:
    """Render the mail ``name`` in the closest available language: fr-CA, then fr, then English."""
    tags = (*fall_back(language or ""), LAST_RESORT)
    template = next(templates[tag, name] for tag in tags if (tag, name) in templates)
    plain = {key: one_line(value) for key, value in values.items()}
    plain["name"] = _safe_name(plain["name"]) or plain["email"]
    return Rendered(
        subject=one_line(template.subject.substitute(plain)),
        text=template.text.substitute(plain),
        html=template.html.substitute({key: html.escape(value) for key, value in plain.items()}),
    )


def _safe_name(name: str) -> str:
    """Return the name, or an empty string if it looks like spam.

    Otherwise anyone could register a stranger's email under the name "You won, see spam.example",
    and have us deliver it.
    """
    looks_bad = len(name) > NAME_MAX_LENGTH or _LIKE_A_LINK.search(name)
    return "" if looks_bad else name
