"""Adapts the description to generators of clients, which understand only some of OpenAPI.

docs/clients.md says which; ``make clients`` tries them.
"""

import json
import re
from typing import Any

_EXAMPLES = ("example", "examples")


def adapt(document: dict[str, Any]) -> dict[str, Any]:
    """Return the document with types and names for all enumerated values, and open free objects.

    The defaults of body fields move to their descriptions, since openapi-typescript takes a field
    with a default for a required one.
    """
    adapted: dict[str, Any] = _complete(document)
    for schema in adapted["components"]["schemas"].values():
        for name, field in schema.get("properties", {}).items():
            if None in field.get("enum", ()):
                # openapi-python-client would invent three names.
                field["title"] = name.title().replace("_", "")
            if "default" in field:
                default = f"Default: {json.dumps(field.pop('default'))}."
                field["description"] = " ".join(filter(None, [field.get("description"), default]))
    return adapted


def _complete(node: Any) -> Any:
    if isinstance(node, list):
        return [_complete(inner) for inner in node]
    if not isinstance(node, dict):
        return node
    completed = {
        key: inner if key in _EXAMPLES else _complete(inner) for key, inner in node.items()
    }
    values = completed.get("enum", [completed.get("const")])
    if isinstance(values, list) and all(isinstance(value, str) for value in values):
        completed.setdefault("type", "string")
        if "enum" in completed and any("-" in value for value in values):
            # A list sorted the other way: -email would be VALUE_1.
            names = [re.sub("^-", "descending_", value).replace("-", "_") for value in values]
            completed["x-enum-varnames"] = names
    if completed.get("type") == "object" and "properties" not in completed:
        # openapi-typescript would take it for an object without members.
        completed.setdefault("additionalProperties", True)
    return completed
