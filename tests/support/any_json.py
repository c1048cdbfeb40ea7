"""The exact schema of the JSON that settings may hold.

It contains itself, so the description gives it in words only: generators of clients fail on it.
Imports nothing of the service, because ``tests/fuzz`` runs without it.
"""

from collections.abc import Mapping
from typing import Any

LEAST, MOST = 1e-15, 2**53
_TEXT = {"type": "string", "pattern": "^[^\\u0000]*$"}
_JSON = {"$ref": "#/components/schemas/AnyJson"}
ANY_JSON = {
    "anyOf": [
        {"type": ["boolean", "null"]},
        {"const": 0},
        {"type": "number", "minimum": LEAST, "maximum": MOST},
        {"type": "number", "minimum": -MOST, "maximum": -LEAST},
        _TEXT,
        {"type": "array", "items": _JSON},
        {"type": "object", "propertyNames": _TEXT, "additionalProperties": _JSON},
    ],
}


def with_exact_json(components: Mapping[str, Any]) -> dict[str, Any]:
    """Return the document's components with the exact schema of what settings may hold."""
    schemas = components["schemas"]
    exact = {
        name: {**schemas[name], "additionalProperties": _JSON}
        for name in ("Settings", "SettingsPatch")
    }
    return {**components, "schemas": {**schemas, **exact, "AnyJson": ANY_JSON}}
