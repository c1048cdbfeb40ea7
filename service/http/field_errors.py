"""Errors of single fields: what is wrong, for people, with a stable code, for programs."""

import unicodedata
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

from marshmallow import Schema, ValidationError, fields, validate

from service.http.problems import FieldError, Problem, invalid_fields

# A form shows a few errors at a time; listing thousands would only help to waste bandwidth.
ERRORS_MAX = 20
NAME_MAX_CHARS = 100

CODES = {
    "duplicate": "Given more than once.",
    "exclusive": "Cannot be combined with another field that was sent.",
    "invalid_characters": "Contains characters that are not allowed here.",
    "invalid_choice": "Not one of the listed values.",
    "invalid_email": "Not an email.",
    "invalid_json": "Not JSON.",
    "invalid_language": "Not a language tag (RFC 5646).",
    "invalid_number": "Not a number, or outside the accepted range or precision.",
    "invalid_text": "Not a string, or one of an unsupported length.",
    "invalid_time": "Not a time in RFC 3339.",
    "invalid_type": "A value of another JSON type is expected.",
    "invalid_url": "Not an http or https URL.",
    "invalid_uuid": "Not a UUID.",
    "not_in_future": "A time in the future is expected.",
    "not_found": "There is nothing with this id.",
    "null": "Null is not allowed here.",
    "required": "Missing.",
    "too_common": "A common, breached or predictable password.",
    "too_deep": "Nested too deeply.",
    "too_large": "Too many bytes of JSON.",
    "too_long": "Too many characters.",
    "too_many": "Too many elements.",
    "too_personal": "A password made mostly of the account's own email or name.",
    "too_short": "Too few characters.",
    "unknown_field": "There is no such field or parameter.",
    "unsearchable": "Too few letters or digits in a row to search for.",
}

_FIELD = fields.Field.default_error_messages
_BUILT_IN = {
    _FIELD["required"]: "required",
    _FIELD["null"]: "null",
    Schema().error_messages["unknown"]: "unknown_field",
    Schema().error_messages["type"]: "invalid_type",
    fields.String.default_error_messages["invalid"]: "invalid_type",
    fields.UUID.default_error_messages["invalid_uuid"]: "invalid_uuid",
    fields.List.default_error_messages["invalid"]: "invalid_type",
}
_ONE_OF = validate.OneOf.default_message.partition("{")[0]


class Message(str):
    """A message with its code, one of CODES. Raises KeyError for any other code."""

    __slots__ = ("code",)
    code: str

    def __new__(cls, code: str, text: str) -> "Message":
        CODES[code]
        message = super().__new__(cls, text)
        message.code = code
        return message


def invalid(code: str, text: str) -> ValidationError:
    """Create an error for a field or validator to raise."""
    return ValidationError(Message(code, text))


def code_of(message: str) -> str:
    """Return the code of a message, our own or marshmallow's. Raises KeyError if it has none."""
    if isinstance(message, Message):
        return message.code
    return "invalid_choice" if message.startswith(_ONE_OF) else _BUILT_IN[message]


def field_error(pointer: str, code: str, text: str) -> FieldError:
    """Create an error for ``invalid_fields``. Raises KeyError for an unknown code."""
    return FieldError(pointer, Message(code, text), code)


def require_one(body: Mapping[str, Any], *names: str) -> None:
    """Raise Problem 422 unless the body has exactly one of these members."""
    sent = [name for name in names if name in body]
    if not sent:
        text = f"Send one of {', '.join(names)}."
        raise invalid_fields(field_error(f"#/{names[0]}", "required", text))
    if len(sent) > 1:
        text = f"Send either this or {sent[0]}."
        raise invalid_fields(field_error(f"#/{sent[1]}", "exclusive", text))


def field_errors(error: ValidationError, pointer: str) -> Problem:
    """Convert marshmallow's nested messages to one 422 with JSON Pointers below ``pointer``.

    Lists at most ``ERRORS_MAX`` errors and says so if there are more.
    """
    found = list(islice(_flatten(error.messages, pointer), ERRORS_MAX + 1))
    return invalid_fields(*found[:ERRORS_MAX], more=len(found) > ERRORS_MAX)


def _flatten(messages: Any, pointer: str) -> Iterator[FieldError]:
    if isinstance(messages, dict):
        for name, inner in messages.items():
            below = pointer if name == "_schema" else f"{pointer}/{escape_pointer(name)}"
            yield from _flatten(inner, below)
    else:
        for text in messages if isinstance(messages, list) else [messages]:
            yield FieldError(pointer, text, code_of(text))


def escape_pointer(name: object) -> str:
    """Escape one reference token of a JSON Pointer (RFC 6901 §3), replacing control characters."""
    text = str(name)[:NAME_MAX_CHARS].encode("utf-8", "replace").decode()
    shown = "".join("?" if unicodedata.category(char) == "Cc" else char for char in text)
    return shown.replace("~", "~0").replace("/", "~1")
