"""An account's preferences: the JSON object that the API calls ``settings``."""

import re
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from typing import Any
from urllib.parse import urlsplit

import orjson
from marshmallow import ValidationError, fields

from service.http.descriptions import Shape, nullable
from service.http.field_errors import ERRORS_MAX, Message, invalid
from service.http.fields import INTEGER_LIMIT, NO_NUL, NUMBER_LIMITS, InexactFloat, find_text_fault

ROLES = ("user", "support", "admin")
NAME_MAX_LENGTH = 200
IS_EMAIL = {"format": "idn-email"}
PREFERENCES_MAX_BYTES = 16 * 1024
PREFERENCES_MAX_DEPTH = 32
_LANGUAGE_TAG = re.compile(r"[A-Za-z]{2,8}(-[A-Za-z0-9]{1,8}){0,4}")
_TOO_DEEP = Message("too_deep", f"Must be nested at most {PREFERENCES_MAX_DEPTH} levels deep.")
_INTEGER_TOO_LARGE = Message("invalid_number", "Integers must be between -2^53 and 2^53.")
_INEXACT = Message("invalid_number", "Numbers must fit the precision of a 64-bit float.")
_NUMBER_OUT_OF_RANGE = Message(
    "invalid_number", "Numbers must be 0, or between 1e-15 and 2^53 in magnitude."
)


class PreferencesField(fields.Field[dict[str, Any]]):
    """A JSON object chosen by the client, in which the well-known keys have fixed types.

    Empty text in those that may be null becomes null. With ``merging``, null at any level removes a
    key (RFC 7396), so the caller checks types after the merge.
    """

    def __init__(self, *, merging: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.merging = merging
        self.json_schema = SETTINGS_PATCH if merging else SETTINGS

    def _deserialize(self, value: Any, attr: Any, data: Any, **kwargs: Any) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise invalid("invalid_type", "Expected an object.")
        check_json(value)
        if self.merging:
            return value
        settings = {**value, **_empty_as_null(value)}
        check_preferences(settings)
        return settings


def _language(value: Any) -> bool:
    return isinstance(value, str) and _LANGUAGE_TAG.fullmatch(value) is not None


def _theme(value: Any) -> bool:
    return value in _THEMES


def _short_text_or_null(value: Any) -> bool:
    return value is None or (isinstance(value, str) and len(value) <= 200)


def _http_url_or_null(value: Any) -> bool:
    if value is None:
        return True
    try:
        parts = urlsplit(value)
        printable = value.isascii() and value.isprintable() and " " not in value
        in_range = parts.port is None or parts.port > 0
        return parts.scheme in ("http", "https") and bool(parts.hostname) and printable and in_range
    except (AttributeError, TypeError, ValueError):
        return False


_THEMES = ("light", "dark", "system")
# Form fields that were left empty are sent as empty text.
_EMPTY_AS_NULL = ("llm_provider", "llm_model", "llm_base_url")
_SHORT_TEXT = {
    "type": ["string", "null"],
    "maxLength": 200,
    "pattern": NO_NUL,
    "description": "Empty text becomes null.",
}
_EXPECT_SHORT_TEXT = Message(
    "invalid_text", "Expected a string of at most 200 characters, or null."
)
# The check, error message and JSON Schema of each key.
WELL_KNOWN_PREFERENCES: dict[str, tuple[Callable[[Any], bool], Message, dict[str, Any]]] = {
    "language": (
        _language,
        Message("invalid_language", 'Expected a language tag (RFC 5646), such as "en".'),
        {"type": "string", "pattern": f"^{_LANGUAGE_TAG.pattern}$"},
    ),
    "ui_theme": (
        _theme,
        Message("invalid_choice", "Expected one of light, dark, system."),
        {"type": "string", "enum": list(_THEMES)},
    ),
    "llm_provider": (_short_text_or_null, _EXPECT_SHORT_TEXT, _SHORT_TEXT),
    "llm_model": (_short_text_or_null, _EXPECT_SHORT_TEXT, _SHORT_TEXT),
    "llm_base_url": (
        _http_url_or_null,
        Message("invalid_url", "Expected an http or https URL, or null."),
        {
            "type": ["string", "null"],
            "format": "http-url",
            "description": "http or https. Empty text becomes null.",
        },
    ),
}

# Other keys hold any JSON. Its exact schema would contain itself, on which generators of clients
# fail, so the descriptions give the limits in words.
_OBJECT = {
    "type": "object",
    "propertyNames": {"pattern": NO_NUL},
    "additionalProperties": True,
}
_LIMITS = (
    "No string contains NUL. Numbers are 0, or between 1e-15 and 2^53 in magnitude, and must fit"
    " the precision of a 64-bit float; -0.0 becomes 0.0."
)
_KNOWN = {name: shape for name, (_, _, shape) in WELL_KNOWN_PREFERENCES.items()}
_SIZE = f"{PREFERENCES_MAX_BYTES} bytes of JSON and {PREFERENCES_MAX_DEPTH} levels of nesting."
SETTINGS = Shape(
    "Settings",
    {
        **_OBJECT,
        "description": (
            "Settings chosen by the client. Well-known keys have fixed types. Limited to"
            f" {_SIZE} {_LIMITS}"
        ),
        "properties": _KNOWN,
    },
)
SETTINGS_PATCH = Shape(
    "SettingsPatch",
    {
        **_OBJECT,
        "description": (
            "A merge patch (RFC 7396): null removes a key. The result is limited to"
            f" {_SIZE} {_LIMITS}"
        ),
        "properties": {name: nullable(shape) for name, shape in _KNOWN.items()},
    },
)


def check_preferences(settings: Mapping[str, Any]) -> None:
    """Raise ValidationError if a well-known key has the wrong type or the object is too large."""
    _check_well_known(settings, settings)
    if len(orjson.dumps(settings)) > PREFERENCES_MAX_BYTES:
        raise _too_large()


def merge_preferences(stored: Mapping[str, Any], patch: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``stored`` with ``patch`` applied. Raises ValidationError if the change is invalid.

    Checks only what the patch changes, because stored settings may predate a rule: well-known keys
    that it names, and the size if it grows.
    """
    merged: dict[str, Any] = {**merge_patch(stored, patch), **_empty_as_null(patch)}
    _check_well_known(merged, patch)
    size = len(orjson.dumps(merged))
    if size > PREFERENCES_MAX_BYTES and size > len(orjson.dumps(stored)):
        raise _too_large()
    return merged


def _empty_as_null(given: Mapping[str, Any]) -> dict[str, None]:
    """Return null for each well-known key whose empty text stands for it."""
    return {key: None for key in _EMPTY_AS_NULL if given.get(key) == ""}


def _check_well_known(settings: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    errors = {
        key: [expects]
        for key, (accepts, expects, _) in WELL_KNOWN_PREFERENCES.items()
        if key in given and key in settings and not accepts(settings[key])
    }
    if errors:
        raise ValidationError(errors)


def _too_large() -> ValidationError:
    return invalid("too_large", f"Must be at most {PREFERENCES_MAX_BYTES} bytes of JSON.")


def check_json(value: Any) -> None:
    """Raise ValidationError, keyed by member, for JSON that is too deep or unsafe for jsonb.

    Stops after one error more than a problem lists.
    """
    errors: dict[Any, Any] = {}
    for path, message in islice(_find_faults(value, ()), ERRORS_MAX + 1):
        level = errors
        for key in path[:-1]:
            level = level.setdefault(key, {})
        level[path[-1] if path else "_schema"] = [message]
    if errors:
        raise ValidationError(errors)


def _find_faults(value: Any, path: tuple[Any, ...]) -> Iterator[tuple[tuple[Any, ...], Message]]:
    """Yield the path and the message of each fault in an object or array."""
    if len(path) >= PREFERENCES_MAX_DEPTH:
        yield path, _TOO_DEEP
        return
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
        if isinstance(key, str) and (fault := find_text_fault(key)):
            yield (*path, key), fault
        elif isinstance(inner, dict | list):
            yield from _find_faults(inner, (*path, key))
        elif len(path) + 1 >= PREFERENCES_MAX_DEPTH:
            yield (*path, key), _TOO_DEEP
        elif type(inner) is int and -INTEGER_LIMIT <= inner <= INTEGER_LIMIT:
            continue  # the most there can be of, so they are checked in the fewest steps
        elif fault := _find_scalar_fault(inner):
            yield (*path, key), fault


def _find_scalar_fault(value: str | float | None) -> Message | None:
    if isinstance(value, str):
        return find_text_fault(value)
    if isinstance(value, bool) or value is None:
        return None
    if isinstance(value, int):
        return None if abs(value) <= INTEGER_LIMIT else _INTEGER_TOO_LARGE
    if isinstance(value, InexactFloat):
        return _INEXACT
    least, most = NUMBER_LIMITS
    return None if not value or least <= abs(value) <= most else _NUMBER_OUT_OF_RANGE


def merge_patch(target: Any, patch: Any) -> Any:
    """Return ``target`` with ``patch`` applied (RFC 7396 §2), without changing either."""
    if not isinstance(patch, dict):
        return patch
    merged = dict(target) if isinstance(target, dict) else {}
    for name, value in patch.items():
        if value is None:
            merged.pop(name, None)
        else:
            merged[name] = merge_patch(merged.get(name), value)
    return merged
