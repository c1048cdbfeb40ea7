"""The JSON Schema of our own field classes, which apispec does not know."""

from typing import Any

from marshmallow import fields

from service.http.descriptions import nullable
from service.http.fields import (
    EMAIL_MAX_LENGTH,
    NO_NUL,
    RFC3339,
    Digits,
    DisplayName,
    EmailAddress,
    Flag,
    NewPassword,
    Password,
    Text,
    Timestamp,
)
from service.settings import Settings


def describe_field(field: fields.Field[Any], settings: Settings) -> dict[str, Any]:
    """Return the JSON Schema of a field. A feature's own field provides it as ``json_schema``."""
    described: dict[str, Any] = getattr(field, "json_schema", {})
    match field:
        case EmailAddress():
            described = {"type": "string", "format": "idn-email", "maxLength": EMAIL_MAX_LENGTH}
        case Text():
            described = _describe_text(field, settings)
        case Digits():
            described = {"type": "integer", "minimum": field.low, "maximum": field.high}
        case Flag():
            described = {"type": "boolean"}
        case Timestamp():
            described = {"type": "string", "format": "date-time", "pattern": f"^{RFC3339.pattern}$"}
    return nullable(described) if "type" in described and field.allow_none else described


def _describe_text(field: Text, settings: Settings) -> dict[str, Any]:
    described: dict[str, Any] = {
        "type": "string",
        "minLength": field.min_length,
        "maxLength": field.max_length,
        "pattern": NO_NUL,
    }
    match field:
        case NewPassword():
            described |= {
                "format": "password",
                "writeOnly": True,
                "minLength": settings.password_min_length,
                "description": (
                    "Must not be common or breached, or based on your own email or name."
                ),
            }
        case Password():
            described |= {"format": "password", "writeOnly": True}
        case DisplayName():
            described |= {
                "format": "display-name",
                "description": "A single line without invisible characters.",
            }
    return described
