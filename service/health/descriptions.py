"""API descriptions and examples of the health probes."""

from collections.abc import Callable

from service.http.descriptions import Decorated, Shape, Success, array_of, describe

CONTENT_TYPE = "application/health+json"

_TEXT = {"type": "string"}
_STATUS = {"enum": ["pass", "warn", "fail"]}
_CHECK = {
    "type": "object",
    "properties": {
        "componentType": _TEXT,
        "status": _STATUS,
        "observedValue": {"type": "number"},
        "observedUnit": _TEXT,
        "output": _TEXT,
    },
    "required": ["componentType", "status"],
    "additionalProperties": False,
}
HEALTH_SHAPE = Shape(
    "Health",
    {
        "type": "object",
        "properties": {
            "status": _STATUS,
            "version": _TEXT,
            "output": _TEXT,
            "checks": {"type": "object", "additionalProperties": array_of(_CHECK)},
        },
        "required": ["status", "version"],
        "additionalProperties": False,
    },
)

ALIVE = {"status": "pass", "version": "0.1.0"}
_READY = {
    **ALIVE,
    "checks": {
        "database:responseTime": [
            {
                "componentType": "datastore",
                "status": "pass",
                "observedValue": 0.84,
                "observedUnit": "ms",
            }
        ],
        "database:writes": [{"componentType": "datastore", "status": "pass"}],
        "database:migrations": [{"componentType": "datastore", "status": "pass"}],
        "pool:utilization": [
            {
                "componentType": "component",
                "status": "pass",
                "observedValue": 1,
                "observedUnit": "of 10 connections",
            }
        ],
    },
}
_NOT_READY = {
    **ALIVE,
    "status": "fail",
    "checks": {
        "database:responseTime": [
            {
                "componentType": "datastore",
                "status": "fail",
                "observedValue": 500.4,
                "observedUnit": "ms",
                "output": "no response within 500 ms",
            }
        ],
        "database:writes": [{"componentType": "datastore", "status": "fail"}],
        "database:migrations": [{"componentType": "datastore", "status": "fail"}],
        "pool:utilization": [
            {
                "componentType": "component",
                "status": "pass",
                "observedValue": 0,
                "observedUnit": "of 10 connections",
            }
        ],
    },
}


def describe_probe(description: str) -> Callable[[Decorated], Decorated]:
    return describe(
        {
            200: Success(description, HEALTH_SHAPE, example=_READY, content_type=CONTENT_TYPE),
            503: Success(
                "Not ready.", HEALTH_SHAPE, ("Retry-After",), _NOT_READY, content_type=CONTENT_TYPE
            ),
        },
        database=False,
    )
