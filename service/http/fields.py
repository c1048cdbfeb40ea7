"""Strict marshmallow fields: what they accept is stored as it was sent, the rest is refused."""

import re
import unicodedata
import uuid
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from typing import Any

from marshmallow import ValidationError, fields

EMAIL_MAX_LENGTH = 254
# Far beyond any passphrase; NIST SP 800-63B-4 asks for at least 64.
PASSWORD_MAX_LENGTH = 256
# The same as ``check_text``, but for surrogates, as a regular expression.
NO_NUL = "^[^\\u0000]*$"
UUID_PATTERN = "[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}"
_UUID = re.compile(UUID_PATTERN)
_JOINED = r"[^\x00-\x7f\u200c\u200d]"
_DIGITS = re.compile("[0-9]{1,9}")
RFC3339 = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,6})?(Z|[+-][0-9]{2}:[0-9]{2})"
)
_JOINER_IN_PLACE = re.compile(rf"(?<={_JOINED})[\u200c\u200d](?={_JOINED})")


class InexactFloat(float):
    """A number of the body with more digits, or further out, than a 64-bit float keeps."""


def read_float(text: str) -> float:
    """The number, marked where it would not come back as it was written."""
    value = float(text)
    try:
        exact = Decimal(text) == Decimal(repr(value))
    except InvalidOperation:  # an exponent of twenty digits
        exact = False
    return value if exact else InexactFloat(value)


def check_text(value: str) -> str:
    """Refuse what PostgreSQL's text cannot hold: NUL, and surrogates without their partner."""
    if "\0" in value:
        raise ValidationError("Must not contain NUL.")
    if any("\ud800" <= char <= "\udfff" for char in value):
        raise ValidationError("Must not contain lone surrogates.")
    return value


class Text(fields.String):
    """Text of ``min_length`` to ``max_length`` code points."""

    def __init__(self, min_length: int, max_length: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.min_length = min_length
        self.max_length = max_length

    def _deserialize(self, value: Any, attr: Any, data: Any, **kwargs: Any) -> str:
        if not isinstance(value, str):
            raise self.make_error("invalid")
        if len(value) > self.max_length:
            raise ValidationError(f"Must be at most {self.max_length} characters long.")
        if len(value) < self.min_length:
            raise ValidationError(
                "Must not be empty."
                if self.min_length == 1
                else f"Must be at least {self.min_length} characters long."
            )
        return check_text(value)


class Password(Text):
    """A password as it is typed, which may be older than today's rules."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(1, PASSWORD_MAX_LENGTH, **kwargs)


class NewPassword(Password):
    """A password to be set. How long it must be is a setting: see ``auth.passwords``."""


class DisplayName(Text):
    """A name for people to read: on one line, without characters that cannot be seen.

    Zero-width (non-)joiners belong to Persian, Indic scripts and emoji: they may stand between two
    characters outside of ASCII. Every other format character, bidirectional controls among them,
    could disguise one name as another.
    """

    def _deserialize(self, value: Any, attr: Any, data: Any, **kwargs: Any) -> str:
        text = super()._deserialize(value, attr, data, **kwargs)
        shown = _JOINER_IN_PLACE.sub("", text)
        if any(unicodedata.category(char) in {"Cc", "Cf", "Zl", "Zp"} for char in shown):
            raise ValidationError("Must not contain control or invisible characters.")
        return text


class UuidText(fields.UUID):
    """A UUID as written (RFC 9562 §4); Python's also takes braces, underscores and 0x."""

    def _deserialize(self, value: Any, attr: Any, data: Any, **kwargs: Any) -> uuid.UUID:
        if not isinstance(value, str) or not _UUID.fullmatch(value):
            raise self.make_error("invalid_uuid")
        return super()._deserialize(value, attr, data, **kwargs)


class EmailAddress(fields.String):
    """An email that could receive mail, internationalised ones included (RFC 6531).

    Loads as email-validator normalises it: NFC, the domain in lower case and as Unicode. Nothing is
    looked up. ``.test`` (RFC 6761) is accepted, so that an integration's own tests can use it.
    """

    def _deserialize(self, value: Any, attr: Any, data: Any, **kwargs: Any) -> str:
        if not isinstance(value, str):
            raise self.make_error("invalid")
        if len(value) > EMAIL_MAX_LENGTH:
            raise ValidationError(f"Must be at most {EMAIL_MAX_LENGTH} characters long.")
        check_text(value)
        # Imported here: 20 ms, which commands and workers need not wait for to start.
        from email_validator import EmailNotValidError, validate_email

        try:
            checked = validate_email(
                value, check_deliverability=False, test_environment=True, strict=True
            )
        except (EmailNotValidError, UnicodeError):
            raise ValidationError("Not a valid email.") from None
        return checked.normalized


def fold_email(email: str) -> str:
    """The form in which two emails are the same account's: Unicode's caseless match.

    A dotless ı does not fold to i, so it names another account. Mail goes to the stored email,
    never to the one that was typed.
    """
    return unicodedata.normalize("NFC", email.casefold())


class Digits(fields.Field[int]):
    """A whole number from ``low`` to ``high``, in decimal digits, as a query has it."""

    def __init__(self, low: int, high: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.low = low
        self.high = high

    def _deserialize(self, value: Any, attr: Any, data: Any, **kwargs: Any) -> int:
        if not _DIGITS.fullmatch(value) or not self.low <= int(value) <= self.high:
            raise ValidationError(f"Expected a whole number from {self.low} to {self.high}.")
        return int(value)


class Flag(fields.Field[bool]):
    """true or false, and nothing that only resembles them."""

    def _deserialize(self, value: Any, attr: Any, data: Any, **kwargs: Any) -> bool:
        if not isinstance(value, bool):
            raise ValidationError("Expected true or false.")
        return value


class Timestamp(fields.Field[datetime]):
    """RFC 3339, with any offset; loads in UTC."""

    def _deserialize(self, value: Any, attr: Any, data: Any, **kwargs: Any) -> datetime:
        try:
            if not RFC3339.fullmatch(value):
                raise ValueError
            return datetime.fromisoformat(value).astimezone(UTC)
        except (TypeError, ValueError, OverflowError):
            expects = "Expected a time with its offset (RFC 3339), such as 2026-01-31T12:00:00Z."
            raise ValidationError(expects) from None
