"""An account's preferences: the JSON object that the API calls ``settings``."""

import re
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

import orjson
from marshmallow import ValidationError, fields

from service.http.descriptions import Shape, array_of, ref
from service.http.fields import NO_NUL, InexactFloat, check_text

ROLES = ("user", "support", "admin")
NAME_MAX_LENGTH = 200
IS_EMAIL = {"format": "idn-email"}
PREFERENCES_MAX_BYTES = 16 * 1024
PREFERENCES_MAX_DEPTH = 32
_LANGUAGE_TAG = re.compile(r"[A-Za-z]{2,8}(-[A-Za-z0-9]{1,8}){0,4}")
# Larger integers lose precision in JavaScript (RFC 8259 §6).
_INTEGER_LIMIT = 2**53
# PostgreSQL prints jsonb numbers without an exponent, so 1e308 would become 309 digits.
NUMBER_LIMITS = (1e-15, float(_INTEGER_LIMIT))


class PreferencesField(fields.Field[dict[str, Any]]):
    """A JSON object chosen by the client, in which the well-known keys have fixed types.

    With ``merging``, null at any level removes a key (RFC 7396), so the caller checks types after
    the merge.
    """

    def __init__(self, *, merging: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.merging = merging
        self.json_schema = SETTINGS_PATCH if merging else SETTINGS

    def _deserialize(self, value: Any, attr: Any, data: Any, **kwargs: Any) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise ValidationError("Expected an object.")
        check_json(value)
        if not self.merging:
            check_preferences(value)
        return value


def _language(value: Any) -> bool:
    return isinstance(value, str) and _LANGUAGE_TAG.fullmatch(value) is not None


def _theme(value: Any) -> bool:
    return value in _THEMES


def _short_text(value: Any) -> bool:
    return isinstance(value, str) and 1 <= len(value) <= 200


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
_SHORT_TEXT = {"type": "string", "minLength": 1, "maxLength": 200, "pattern": NO_NUL}
# The check, error message and JSON Schema of each key.
WELL_KNOWN_PREFERENCES: dict[str, tuple[Callable[[Any], bool], str, dict[str, Any]]] = {
    "language": (
        _language,
        'Expected a language tag (RFC 5646), such as "en".',
        {"type": "string", "pattern": f"^{_LANGUAGE_TAG.pattern}$"},
    ),
    "ui_theme": (_theme, "Expected one of light, dark, system.", {"enum": list(_THEMES)}),
    "llm_provider": (_short_text, "Expected a string of 1 to 200 characters.", _SHORT_TEXT),
    "llm_model": (_short_text, "Expected a string of 1 to 200 characters.", _SHORT_TEXT),
    "llm_base_url": (
        _http_url_or_null,
        "Expected an http or https URL, or null.",
        {
            "anyOf": [{"type": "string", "format": "uri"}, {"type": "null"}],
            "description": "http or https",
        },
    ),
}

_OBJECT = {
    "type": "object",
    "propertyNames": {"pattern": NO_NUL},
    "additionalProperties": ref("Json"),
}
_LEAST, _MOST = NUMBER_LIMITS
ANY_JSON = Shape(
    "Json",
    {
        "description": (
            "Any JSON without NUL characters. Numbers must fit the precision of a 64-bit float."
        ),
        "anyOf": [
            {"type": ["boolean", "null"]},
            {"const": 0},
            {"type": "number", "minimum": _LEAST, "maximum": _MOST},
            {"type": "number", "minimum": -_MOST, "maximum": -_LEAST},
            {"type": "string", "pattern": NO_NUL},
            array_of(ref("Json")),
            _OBJECT,
        ],
    },
)
_KNOWN = {name: shape for name, (_, _, shape) in WELL_KNOWN_PREFERENCES.items()}
_SIZE = f"{PREFERENCES_MAX_BYTES} bytes of JSON and {PREFERENCES_MAX_DEPTH} levels of nesting."
SETTINGS = Shape(
    "Settings",
    {
        **_OBJECT,
        "additionalProperties": ANY_JSON,
        "description": (
            f"Settings chosen by the client. Well-known keys have fixed types. Limited to {_SIZE}"
        ),
        "properties": _KNOWN,
    },
)
SETTINGS_PATCH = Shape(
    "SettingsPatch",
    {
        **_OBJECT,
        "additionalProperties": ANY_JSON,
        "description": (
            f"A merge patch (RFC 7396): null removes a key. The result is limited to {_SIZE}"
        ),
        "properties": {
            name: {"anyOf": [shape, {"type": "null"}]} for name, shape in _KNOWN.items()
        },
    },
)


def check_preferences(settings: Mapping[str, Any]) -> None:
    """Raise ValidationError if a well-known key has the wrong type or the object is too large."""
    errors = {
        key: [expects]
        for key, (accepts, expects, _) in WELL_KNOWN_PREFERENCES.items()
        if key in settings and not accepts(settings[key])
    }
    if errors:
        raise ValidationError(errors)
    if len(orjson.dumps(settings)) > PREFERENCES_MAX_BYTES:
        raise ValidationError(f"Must be at most {PREFERENCES_MAX_BYTES} bytes of JSON.")


def check_json(value: Any, depth: int = 1) -> None:
    """Raise ValidationError, keyed by member, for JSON that is too deep or unsafe for jsonb."""
    if depth > PREFERENCES_MAX_DEPTH:
        raise ValidationError(f"Must be nested at most {PREFERENCES_MAX_DEPTH} levels deep.")
    if isinstance(value, str):
        check_text(value)
    elif isinstance(value, bool) or value is None:
        return
    elif isinstance(value, int):
        if abs(value) > _INTEGER_LIMIT:
            raise ValidationError("Integers must be between -2^53 and 2^53.")
    elif isinstance(value, InexactFloat):
        raise ValidationError("Numbers must fit the precision of a 64-bit float.")
    elif isinstance(value, float):
        least, most = NUMBER_LIMITS
        if value and not least <= abs(value) <= most:
            raise ValidationError("Numbers must be 0, or between 1e-15 and 2^53 in magnitude.")
    else:
        members = value.items() if isinstance(value, dict) else enumerate(value)
        errors: dict[Any, Any] = {}
        for key, inner in members:
            try:
                check_text(key) if isinstance(key, str) else None
                check_json(inner, depth + 1)
            except ValidationError as error:
                errors[key] = error.messages
        if errors:
            raise ValidationError(errors)


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
