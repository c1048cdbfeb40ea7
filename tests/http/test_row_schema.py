"""RowSchema dumps like marshmallow, or rejects the class when it is created."""

from collections.abc import Callable
from datetime import UTC
from typing import Any

import pytest
from asyncpg.pgproto.pgproto import UUID
from hypothesis import given
from hypothesis import strategies as st
from marshmallow import Schema, fields, post_dump, pre_dump

from service.accounts.preferences import PreferencesField
from service.factors.schemas import NewCodes
from service.http.fields import Timestamp
from service.http.row_schema import RowSchema
from service.json_codec import encode
from service.sessions.schemas import Methods
from service.worlds.shapes import BeatsOfStory, StoryOfBeat
from tests.support.schemas import row_schemas

TEXTS = st.text(st.characters(exclude_categories=["Cs"]))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(-1e15, 1e15) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=10,
)
OBJECTS = st.dictionaries(TEXTS, JSON, max_size=4)
VALUES: dict[type[fields.Field[Any]], st.SearchStrategy[Any]] = {
    fields.UUID: st.uuids() | st.uuids().map(lambda uuid: UUID(str(uuid))),
    fields.String: TEXTS,
    fields.Boolean: st.booleans(),
    fields.Integer: st.integers(0, 2**53),
    fields.Float: st.floats(-1e15, 1e15),
    fields.Raw: st.lists(TEXTS, max_size=3),
    fields.Dict: OBJECTS,
    Methods: st.lists(TEXTS, max_size=3),
    NewCodes: st.lists(TEXTS, max_size=3),
    StoryOfBeat: OBJECTS,
    BeatsOfStory: st.lists(OBJECTS, max_size=3),
    PreferencesField: OBJECTS,
    Timestamp: st.datetimes(timezones=st.just(UTC)),
}


def rows(schema: type[RowSchema]) -> st.SearchStrategy[dict[str, Any]]:
    """Random rows in which any value may be None, since columns may be null."""
    columns = {name: st.none() | VALUES[type(field)] for name, field in schema().fields.items()}
    return st.fixed_dictionaries(columns)


@pytest.mark.property
@pytest.mark.parametrize("schema", row_schemas(), ids=lambda schema: schema.__name__)
def test_dump_matches_marshmallow(schema: type[RowSchema]) -> None:
    @given(rows(schema), rows(schema))
    def check(one: dict[str, Any], other: dict[str, Any]) -> None:
        instance = schema()
        extra = {**one, "not_shown": "secret"}
        assert encode(instance.dump(extra)) == encode(Schema.dump(instance, extra))
        several = [one, other]
        by_marshmallow = Schema.dump(instance, several, many=True)
        assert encode(instance.dump(several, many=True)) == encode(by_marshmallow)
        assert encode(schema(many=True).dump(several)) == encode(by_marshmallow)

    check()


def test_schemas_of_several_features_are_compared() -> None:
    assert len(row_schemas()) >= 9


class _Upper(fields.String):
    def _serialize(self, value: Any, attr: Any, obj: Any, **kwargs: Any) -> Any:
        return value.upper()


class _Whole(fields.Field[Any]):
    def serialize(self, attr: Any, obj: Any, accessor: Any = None, **kwargs: Any) -> Any:
        return obj


@pytest.mark.parametrize(
    "make_field",
    [
        lambda: fields.String(data_key="other"),
        lambda: fields.String(attribute="other"),
        lambda: fields.String(load_only=True),
        lambda: fields.String(dump_default="nothing"),
        lambda: fields.Integer(as_string=True),
        lambda: fields.Dict(values=fields.Integer()),
        lambda: fields.Method("get_attribute"),
        lambda: fields.Function(lambda row: row["id"]),
        lambda: fields.Constant(1),
        fields.DateTime,
        lambda: fields.List(fields.String()),
        _Upper,
        _Whole,
    ],
)
def test_unsupported_fields_are_rejected(
    make_field: Callable[[], fields.Field[Any]],
) -> None:
    with pytest.raises(TypeError, match=r"^Made\.column: "):
        type("Made", (RowSchema,), {"column": make_field()})


@pytest.mark.parametrize(
    "method",
    [
        pre_dump(lambda _, row, **__: row),
        post_dump(lambda _, row, **__: row),
        post_dump(pass_collection=True)(lambda _, row, **__: row),
        lambda _, row, name, default: row[name],
        property(lambda _: 1),
    ],
)
def test_methods_and_hooks_are_rejected(method: object) -> None:
    with pytest.raises(TypeError, match="no methods or hooks"):
        type("Made", (RowSchema,), {"column": fields.String(), "method": method})


def test_inherited_hook_is_rejected() -> None:
    class Hooked:
        @post_dump
        def change(self, row: Any, **_: Any) -> Any:
            return row

    with pytest.raises(TypeError, match="no methods or hooks"):
        type("Made", (Hooked, RowSchema), {"column": fields.String()})


def test_missing_column_raises_key_error() -> None:
    schema = type("Made", (RowSchema,), {"column": fields.String()})()
    with pytest.raises(KeyError, match="column"):
        schema.dump({})
