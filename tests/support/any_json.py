"""The exact schema of what the description calls AnyJson.

It contains itself, so the description states it in words only (generators of clients fail on it).
Imports nothing of the service, because ``tests/fuzz`` runs without it.
"""

from collections.abc import Mapping
from typing import Any

TEXT = {"type": "string", "pattern": "^[^\\u0000]*$"}
LEAST, MOST = 1e-15, 2**53
_SELF = {"$ref": "#/components/schemas/AnyJson"}
STRICT = {
    "anyOf": [
        {"type": ["boolean", "null"]},
        {"const": 0},
        {"type": "number", "minimum": LEAST, "maximum": MOST},
        {"type": "number", "minimum": -MOST, "maximum": -LEAST},
        TEXT,
        {"type": "array", "items": _SELF},
        {"type": "object", "propertyNames": TEXT, "additionalProperties": _SELF},
    ],
}


def with_strict_json(components: Mapping[str, Any]) -> dict[str, Any]:
    """Return the document's components with the exact schema in place of AnyJson."""
    return {**components, "schemas": {**components["schemas"], "AnyJson": STRICT}}
