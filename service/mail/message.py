"""Composes a mail. Only encodes: nothing that a client wrote is parsed or decoded.

Parsers of addresses have decoded RFC 2047 encoded words in them, line breaks included, so that a
registered email could add headers (Python 3.11.7 and 3.12.1 do). Imports only the standard library,
so that ``python -m tests.support.heads`` runs on any Python.
"""

import base64
import re
import unicodedata
from datetime import UTC, datetime
from email.message import EmailMessage
from email.policy import SMTP
from email.utils import format_datetime

_ATOM = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~\x80-\U0010ffff-]+"
_DOTTED = rf"{_ATOM}(?:\.{_ATOM})*"
_ADDRESS = re.compile(rf"{_DOTTED}@{_DOTTED}")
_PHRASE = re.compile(rf"{_ATOM}(?: {_ATOM})*")
# RFC 2047 §2: lines with encoded words have at most 76 characters, the field's name included.
_ENCODED_LINE_MAX = 76
_WORD_BYTES = 39
# RFC 5322 §2.1.1.
_LINE_MAX_BYTES = 998
# More than any valid email, and short enough for a line.
_EMAIL_MAX_BYTES = 800


class UnsafeEmailError(ValueError):
    """The email cannot be written in a header as it is."""


def compose(
    *, sender: tuple[str, str], to: str, subject: str, text: str, html: str, mail_id: str
) -> bytes:
    """Return the mail as sent: 7-bit, except that a non-ASCII ``to`` needs SMTPUTF8 (RFC 6531).

    ``sender`` is a display name, which may be empty, and an email. Raises UnsafeEmailError.
    """
    name, from_email = sender
    body = EmailMessage(SMTP.clone(cte_type="7bit"))
    body.set_content(text)
    body.add_alternative(html, subtype="html")
    headers = {
        "From": _mailbox(name, from_email),
        "To": _checked(to),
        "Subject": _unstructured(subject, len("Subject: ")),
        "Date": format_datetime(datetime.now(UTC)),
        # The same at each attempt, so that duplicates can be recognized (RFC 5322 §3.6.4).
        "Message-ID": f"<{mail_id}@{from_email.rpartition('@')[2]}>",
        "Auto-Submitted": "auto-generated",
    }
    head = "".join(f"{header}: {value}\r\n" for header, value in headers.items())
    message = head.encode() + body.as_bytes()
    require_headers(message, [*headers, *body.keys()])
    return message


def require_headers(message: bytes, names: list[str]) -> None:
    """Raise RuntimeError unless the head holds exactly the headers ``names``, one line each.

    A line counts with the lines that continue it.
    """
    head = message.partition(b"\r\n\r\n")[0]
    lines = head.split(b"\r\n")
    found = [line.partition(b":")[0].decode() for line in lines if line[:1] not in (b" ", b"\t")]
    broken = re.search(rb"[\x00-\x08\x0a-\x1f\x7f]", head.replace(b"\r\n", b""))
    blank = any(not line.strip() for line in lines)
    too_long = any(len(line) > _LINE_MAX_BYTES for line in lines)
    if found != names or broken or blank or too_long:
        raise RuntimeError("a mail's head does not have exactly its headers")


def one_line(text: str) -> str:
    """Collapse white space, line breaks, control characters and lone surrogates into spaces."""
    bad = {"Cc", "Cs", "Zl", "Zp"}
    return " ".join(
        "".join(" " if unicodedata.category(char) in bad else char for char in text).split()
    )


def _checked(email: str) -> str:
    """Return the email if its parts are plain atoms, which no parser decodes."""
    plain = _ADDRESS.fullmatch(email) and email.isprintable() and "=?" not in email
    if not plain or len(email.encode()) > _EMAIL_MAX_BYTES:
        raise UnsafeEmailError("not an email of plain atoms")
    return email


def _mailbox(name: str, email: str) -> str:
    name = one_line(name)
    if not name:
        return _checked(email)
    if name.isascii() and "=?" not in name and len(name) < _ENCODED_LINE_MAX - len("From: "):
        quoted = re.sub(r'(["\\])', r"\\\1", name)
        shown = name if _PHRASE.fullmatch(name) else f'"{quoted}"'
    else:
        shown = _encode(name)
    fits = len(f"From: {shown} <{email}>") <= _ENCODED_LINE_MAX
    gap = " " if fits else "\r\n "
    return f"{shown}{gap}<{_checked(email)}>"


def _unstructured(text: str, used: int) -> str:
    text = one_line(text)
    plain = text.isascii() and "=?" not in text and len(text) <= _ENCODED_LINE_MAX - used
    return text if plain else _encode(text)


def _encode(text: str) -> str:
    """Return the text as RFC 2047 encoded words, one a line. None splits a character."""
    words, part = [], b""
    for char in text:
        encoded = char.encode()
        if len(part) + len(encoded) > _WORD_BYTES:
            words.append(part)
            part = b""
        part += encoded
    words.append(part)
    return "\r\n ".join(f"=?utf-8?b?{base64.b64encode(word).decode()}?=" for word in words)
