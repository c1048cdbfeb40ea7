"""Strict marshmallow fields: they reject invalid values instead of coercing them."""

import re
import unicodedata
import uuid
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, ClassVar

from marshmallow import ValidationError, fields

from service.http.field_errors import Message, invalid

EMAIL_MAX_LENGTH = 254
# Far longer than any passphrase; NIST SP 800-63B-4 requires at least 64.
PASSWORD_MAX_LENGTH = 256
# Longer than any JSON number that a program writes.
NUMBER_MAX_CHARS = 400
# A point and 15 digits: every such decimal survives the way to a 64-bit float and back.
EXACT_CHARS = 16
# Larger integers lose precision in JavaScript (RFC 8259 §6).
INTEGER_LIMIT = 2**53
# PostgreSQL prints jsonb numbers without an exponent, so 1e308 would become 309 digits.
NUMBER_LIMITS = _LEAST, _MOST = 1e-15, float(INTEGER_LIMIT)
LABEL_MAX_LENGTH = 63
# The rule of ``check_text`` as a regular expression, except for surrogates.
NO_NUL = "^[^\\u0000]*$"
UUID_PATTERN = "[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}"
_UUID = re.compile(UUID_PATTERN)
_JOINED = r"[^\x00-\x7f\u200c\u200d]"
# The full stops that IDNA treats alike (RFC 3490 §3.1).
_DOTS = re.compile("[.\u3002\uff0e\uff61]")
_SURROGATE = re.compile("[\ud800-\udfff]")
_DIGITS = re.compile("[0-9]{1,9}")
_HOUR_MINUTE = "(?:[01][0-9]|2[0-3]):[0-5][0-9]"
RFC3339 = re.compile(
    rf"([0-9]{{4}}-[0-9]{{2}}-[0-9]{{2}})[Tt]({_HOUR_MINUTE}):([0-5][0-9]|60)(?:\.([0-9]+))?"
    rf"([Zz]|[+-]{_HOUR_MINUTE})"
)
_JOINER_IN_PLACE = re.compile(rf"(?<={_JOINED})[\u200c\u200d](?={_JOINED})")


_NUL = Message("invalid_characters", "Must not contain NUL.")
_LONE_SURROGATE = Message("invalid_characters", "Must not contain lone surrogates.")


class InexactFloat(float):
    """A JSON number whose precision exceeds a 64-bit float."""


def read_int(text: str) -> int:
    """Parse a JSON integer. Raises ValueError if it is absurdly long."""
    if len(text) > NUMBER_MAX_CHARS:
        raise ValueError("number too long")
    return int(text)


def read_float(text: str) -> float:
    """Parse a JSON number, as InexactFloat if a float would print as another number.

    A number outside ``NUMBER_LIMITS`` is refused wherever it stands, so its digits are not
    compared. Raises ValueError if the number is absurdly long.
    """
    if len(text) > NUMBER_MAX_CHARS:
        raise ValueError("number too long")
    value = float(text)
    if value and (len(text) <= EXACT_CHARS or not _LEAST <= abs(value) <= _MOST):
        return value
    # PostgreSQL's numeric has no negative zero.
    return value or 0.0 if _prints_as(value, text) else InexactFloat(value)


def _prints_as(value: float, text: str) -> bool:
    """Return whether a float is the number that the text says, to the last digit."""
    text = text.lower()
    if not value:
        return not text.partition("e")[0].strip("-0.")
    shown = repr(value)
    if "e" in text or "e" in shown:
        return text == shown or Decimal(text) == Decimal(shown)
    return text.rstrip("0") == shown.rstrip("0")


def too_long(limit: int) -> ValidationError:
    return invalid("too_long", f"Must be at most {limit} characters long.")


def find_text_fault(value: str) -> Message | None:
    """Return what PostgreSQL text cannot hold: NUL and lone surrogates. None for other text."""
    if "\0" in value:
        return _NUL
    if not value.isascii() and _SURROGATE.search(value):
        return _LONE_SURROGATE
    return None


def check_text(value: str) -> str:
    """Return the value. Raises ValidationError for text that PostgreSQL cannot hold."""
    if fault := find_text_fault(value):
        raise ValidationError(fault)
    return value


class Text(fields.String):
    """Text with ``min_length`` to ``max_length`` code points."""

    def __init__(self, min_length: int, max_length: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.min_length = min_length
        self.max_length = max_length

    def _deserialize(self, value: Any, attr: Any, data: Any, **kwargs: Any) -> str:
        if not isinstance(value, str):
            raise self.make_error("invalid")
        if len(value) > self.max_length:
            raise too_long(self.max_length)
        if len(value) < self.min_length:
            raise invalid(
                "too_short",
                "Must not be empty."
                if self.min_length == 1
                else f"Must be at least {self.min_length} characters long.",
            )
        return check_text(value)


class Password(Text):
    """A password to verify, which may predate the current rules."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(1, PASSWORD_MAX_LENGTH, **kwargs)


class NewPassword(Password):
    """A new password. Its minimum length is a setting: see ``auth.passwords``."""

    def _deserialize(self, value: Any, attr: Any, data: Any, **kwargs: Any) -> str:
        text = super()._deserialize(value, attr, data, **kwargs)
        _, most = password_lengths(text)
        if most > self.max_length:
            raise too_long(self.max_length)
        return text


def password_lengths(password: str) -> tuple[int, int]:
    """Return the least and the most characters that the password has, as typed and after NFKC.

    U+FDFA alone becomes eighteen characters; others compose into fewer. Both limits hold for both.
    """
    lengths = (len(password), len(unicodedata.normalize("NFKC", password)))
    return min(lengths), max(lengths)


class DisplayName(Text):
    """A display name: one line, without invisible characters.

    Persian, Indic scripts and emoji need zero-width joiners and non-joiners, so these are allowed
    between two non-ASCII characters. Any other format character, such as a bidirectional control,
    could disguise one name as another.
    """

    def _deserialize(self, value: Any, attr: Any, data: Any, **kwargs: Any) -> str:
        text = super()._deserialize(value, attr, data, **kwargs)
        shown = _JOINER_IN_PLACE.sub("", text)
        if any(unicodedata.category(char) in {"Cc", "Cf", "Zl", "Zp"} for char in shown):
            raise invalid("invalid_characters", "Must not contain control or invisible characters.")
        return text


class LimitedList(fields.List[Any]):
    """A list whose elements are checked only if there are not too many."""

    def __init__(self, inner: fields.Field[Any], limit: int, **kwargs: Any) -> None:
        super().__init__(inner, **kwargs)
        self.limit = limit
        self.json_schema: dict[str, Any] = {"maxItems": limit}

    def _deserialize(self, value: Any, attr: Any, data: Any, **kwargs: Any) -> list[Any]:
        if not isinstance(value, list):
            raise invalid("invalid_type", "Expected an array.")
        if len(value) > self.limit:
            raise invalid("too_many", f"Must have at most {self.limit} elements.")
        return super()._deserialize(value, attr, data, **kwargs)


class UuidText(fields.UUID):
    """A UUID in the format of RFC 9562 §4; Python also accepts braces and a urn prefix."""

    def _deserialize(self, value: Any, attr: Any, data: Any, **kwargs: Any) -> uuid.UUID:
        if not isinstance(value, str) or not _UUID.fullmatch(value):
            raise self.make_error("invalid_uuid")
        return super()._deserialize(value, attr, data, **kwargs)


class EmailAddress(fields.String):
    """An email that could receive mail, internationalised or not (RFC 6531).

    Loads as email-validator normalises it: NFC, with the domain in lower-case Unicode. There is no
    DNS lookup. ``.test`` (RFC 6761) is accepted for use in integration tests.
    """

    def _deserialize(self, value: Any, attr: Any, data: Any, **kwargs: Any) -> str:
        if not isinstance(value, str):
            raise self.make_error("invalid")
        if len(value) > EMAIL_MAX_LENGTH:
            raise too_long(EMAIL_MAX_LENGTH)
        check_text(value)
        # Refused here, because to encode an overlong label takes quadratic time, and to encode many
        # labels takes milliseconds. An A-label is at least as long as its text, and "xn--".
        domain = unicodedata.normalize("NFKC", value.rpartition("@")[2])
        labels = _DOTS.split(domain)
        shortest = sum(len(label) + (1 if label.isascii() else 5) for label in labels)
        if max(map(len, labels)) > LABEL_MAX_LENGTH or shortest > EMAIL_MAX_LENGTH:
            raise invalid("invalid_email", "Not a valid email.")
        # Imported here, so that commands and workers start faster.
        from email_validator import EmailNotValidError, validate_email

        try:
            checked = validate_email(
                value, check_deliverability=False, test_environment=True, strict=True
            )
        except (EmailNotValidError, UnicodeError):
            raise invalid("invalid_email", "Not a valid email.") from None
        # Some mail programs decode an encoded word (RFC 2047), which could add headers to a mail.
        if "=?" in checked.normalized:
            raise invalid("invalid_email", "Not a valid email.")
        return checked.normalized


def fold_email(email: str) -> str:
    """Return the form in which equal emails belong to the same account.

    ``email`` is as ``EmailAddress`` loads it. Only the local part is folded, by Unicode's full case
    folding and NFC: ς equals σ, as both are Σ in capitals, and ß equals ss, but a dotless ı is not
    an i. NFKC is not applied. Equal domains already have one spelling, the one that IDNA 2008 maps
    to and from their A-labels; folding it would join ß to ss, which DNS tells apart.

    Nothing else folds emails, no SQL either. Mail goes to the stored email, never to the one that
    was typed.
    """
    local, at, domain = email.rpartition("@")
    return _fold_local_part(local) + at + domain


def search_forms(text: str) -> set[str]:
    """Return the forms that a part of an email may have in folded ones.

    Without an @, the part may be of a local part or of a domain.
    """
    local, at, domain = text.rpartition("@")
    # One by one, as IDNA maps them: in a whole word, a last Σ would become ς.
    lowered = unicodedata.normalize("NFC", "".join(map(str.lower, domain)))
    if at:
        return {_fold_local_part(local) + at + lowered}
    return {_fold_local_part(text), lowered}


def _fold_local_part(text: str) -> str:
    return unicodedata.normalize("NFC", text.casefold())


class Digits(fields.Field[int]):
    """A whole number from ``low`` to ``high``, as decimal digits in a query."""

    def __init__(self, low: int, high: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.low = low
        self.high = high

    def _deserialize(self, value: Any, attr: Any, data: Any, **kwargs: Any) -> int:
        if not _DIGITS.fullmatch(value) or not self.low <= int(value) <= self.high:
            raise invalid(
                "invalid_number", f"Expected a whole number from {self.low} to {self.high}."
            )
        return int(value)


class Flag(fields.Field[bool]):
    """true or false, with no other spelling."""

    def _deserialize(self, value: Any, attr: Any, data: Any, **kwargs: Any) -> bool:
        if not isinstance(value, bool):
            raise invalid("invalid_type", "Expected true or false.")
        return value


class QueryFlag(fields.Field[bool]):
    """true or false in a query."""

    json_schema: ClassVar = {"type": "boolean"}

    def _deserialize(self, value: Any, attr: Any, data: Any, **kwargs: Any) -> bool:
        if value not in ("true", "false"):
            raise invalid("invalid_type", "Expected true or false.")
        return bool(value == "true")


def read_time(text: str) -> datetime:
    """Parse a time (RFC 3339 §5.6) as UTC, without the digits after its microseconds.

    A leap second is read as the second after it, as PostgreSQL does. Raises ValueError, also for a
    second 60 that is not the last of a day in UTC (§5.7), and OverflowError.
    """
    found = RFC3339.fullmatch(text)
    if found is None:
        raise ValueError("not RFC 3339")
    date, minute, second, fraction, offset = found.groups("")
    leap = second == "60"
    start = f"{date}T{minute}:{59 if leap else second}.{fraction[:6]:0<6}"
    time = datetime.fromisoformat(start + offset.upper()).astimezone(UTC)
    if leap and (time.hour, time.minute) != (23, 59):
        raise ValueError("no leap second")
    return time + timedelta(seconds=leap)


class Timestamp(fields.Field[datetime]):
    """An RFC 3339 time with any offset; loads as UTC."""

    def _deserialize(self, value: Any, attr: Any, data: Any, **kwargs: Any) -> datetime:
        try:
            return read_time(value)
        except (TypeError, ValueError, OverflowError):
            expects = "Expected a time with its offset (RFC 3339), such as 2026-01-31T12:00:00Z."
            raise invalid("invalid_time", expects) from None
