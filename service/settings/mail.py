"""Parsers of MAIL_FROM and MAIL_EHLO."""

import re
from ipaddress import IPv4Address, IPv6Address

from service.settings.variables import Parser

_ATOM = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+"
_LABEL = "[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_EMAIL = rf"(?P<email>{_ATOM}(\.{_ATOM})*@{_LABEL}(\.{_LABEL})*)"
_NAME = r'(?P<name>"([^"\\]|\\.)*"|[^"\\<>()\[\],;:@]*)'
_SENDER = re.compile(rf"{_EMAIL}|{_NAME} *<{_EMAIL.replace('<email>', '<after_name>')}>")
# The last label is not a number, as in an IP.
_FULL_NAME = re.compile(rf"({_LABEL}\.)+(?![0-9]+$){_LABEL}")
_LITERAL = re.compile(r"\[(?:(?P<v6>IPv6:)?(?P<ip>[0-9a-fA-F.:]+))\]")


def split_sender(text: str) -> tuple[str, str]:
    """Split a mailbox (RFC 5322) into its display name, which may be empty, and its ASCII email.

    Raises ValueError. Encoded words (RFC 2047) are refused, because decoding one could add headers.
    """
    match = _SENDER.fullmatch(text)
    if match is None or not text.isprintable() or "=?" in text:
        raise ValueError
    name = (match["name"] or "").strip()
    if name.startswith('"'):
        name = re.sub(r"\\(.)", r"\1", name[1:-1])
    return name, match["email"] or match["after_name"]


def _parse_sender(text: str) -> str:
    split_sender(text)
    return text


SENDER = Parser("a sender such as Name <no-reply@app.example>", _parse_sender)


def is_full_name(name: str) -> bool:
    """Whether the name may stand for a host in EHLO: a domain name with a dot (RFC 5321 §2.3.5)."""
    return _FULL_NAME.fullmatch(name) is not None


def _parse_ehlo_name(text: str) -> str:
    literal = _LITERAL.fullmatch(text)
    if literal is not None:
        (IPv6Address if literal["v6"] else IPv4Address)(literal["ip"])
    elif not is_full_name(text):
        raise ValueError
    return text


EHLO_NAME = Parser(
    "a full name or an IP in brackets, such as mail.app.example, [192.0.2.1] or [IPv6:2001:db8::1]",
    _parse_ehlo_name,
)
