"""Fields of worlds that other features do not have."""

from typing import Any, ClassVar

from marshmallow import fields

from service.http.field_errors import invalid
from service.http.fields import NUMBER_LIMITS, InexactFloat, LimitedList, Text, UuidText

TAGS_MAX = 20
TAG_MAX_LENGTH = 100
_, NUMBER_MAX = NUMBER_LIMITS


class Number(fields.Field[float]):
    """A JSON number that a 64-bit float holds exactly, of at most 2⁵³ either way."""

    json_schema: ClassVar = {"type": "number", "minimum": -NUMBER_MAX, "maximum": NUMBER_MAX}

    def _deserialize(self, value: Any, attr: Any, data: Any, **kwargs: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise invalid("invalid_type", "Expected a number.")
        if isinstance(value, InexactFloat) or not -NUMBER_MAX <= value <= NUMBER_MAX:
            raise invalid("invalid_number", "Expected a number that a 64-bit float holds exactly.")
        return float(value) or 0.0


class WholeNumber(fields.Field[int]):
    """A whole JSON number from ``low`` to ``high``."""

    def __init__(self, low: int, high: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.low, self.high = low, high
        self.json_schema = {"type": "integer", "minimum": low, "maximum": high}

    def _deserialize(self, value: Any, attr: Any, data: Any, **kwargs: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise invalid("invalid_type", "Expected a whole number.")
        inexact = isinstance(value, InexactFloat) or value != value // 1
        if inexact or not self.low <= value <= self.high:
            raise invalid(
                "invalid_number", f"Expected a whole number from {self.low} to {self.high}."
            )
        return int(value)


class StoryStatus(fields.String):
    """The status of a story, which older clients call ``ALIAS`` if it is active."""

    ALIAS: ClassVar = "in_progress"

    def deserialize(self, *args: Any, **kwargs: Any) -> Any:
        status = super().deserialize(*args, **kwargs)
        return "active" if status == self.ALIAS else status


class Tags(LimitedList):
    """Tags, in their order."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(Text(1, TAG_MAX_LENGTH), TAGS_MAX, **kwargs)


class Ids(LimitedList):
    """Ids of rows, in their order, each only once if ``distinct``."""

    def __init__(self, limit: int, *, distinct: bool = True, **kwargs: Any) -> None:
        super().__init__(UuidText(), limit, **kwargs)
        self.distinct = distinct
        self.json_schema["uniqueItems"] = distinct

    def _deserialize(self, value: Any, attr: Any, data: Any, **kwargs: Any) -> list[Any]:
        ids = super()._deserialize(value, attr, data, **kwargs)
        if self.distinct and len(set(ids)) != len(ids):
            raise invalid("duplicate", "Must not name the same row twice.")
        return ids
