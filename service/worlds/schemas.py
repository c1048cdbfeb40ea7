"""Schemas of worlds, events, stories and beats."""

from typing import Any

from marshmallow import Schema, ValidationError, fields, post_load, validate

from service.http.field_errors import Message
from service.http.fields import Digits, QueryFlag, Text, Timestamp, UuidText
from service.http.row_schema import RowSchema
from service.worlds.fields import (
    TAG_MAX_LENGTH,
    Ids,
    Number,
    StoryStatus,
    Tags,
    WholeNumber,
)
from service.worlds.limits import BEATS_PER_STORY
from service.worlds.lists import ListSchema

NAME_MAX_LENGTH = 255
COPY_SUFFIX = " (Copy)"
LABEL_MAX_LENGTH = 255
TYPE_MAX_LENGTH = 100
TONE_MAX_LENGTH = 500
# Texts of some paragraphs.
TEXT_MAX_LENGTH = 10_000
# Texts of some pages.
CONTENT_MAX_LENGTH = 50_000
CAUSES_MAX = 50
# Characters and results of a search.
SEARCH_MAX_LENGTH = 200
RESULTS_MAX = 50
# Of a request that writes texts, in any script and with JSON's escapes.
BODY_MAX_BYTES = 2 * 1024 * 1024
# As large as the column, so that a beat that others moved on can be sent back.
ORDER_MAX = 2**31 - 1

CHRONOLOGY_MODES = ("linear", "fragmented", "timeless")
STATUSES = ("draft", "active", "completed", "archived")
MODES = ("autonomous", "collaborative", "manual")
POV_TYPES = ("first", "third", "omniscient")
BEAT_TYPES = ("scene", "summary", "note", "log", "memory", "dialogue", "description")
AUTHORS = ("ai", "user", "collaborative")
# The text-search configurations that PostgreSQL 15 comes with.
TEXT_SEARCHES = (
    "simple", "arabic", "armenian", "basque", "catalan", "danish", "dutch", "english", "finnish",
    "french", "german", "greek", "hindi", "hungarian", "indonesian", "irish", "italian",
    "lithuanian", "nepali", "norwegian", "portuguese", "romanian", "russian", "serbian", "spanish",
    "swedish", "tamil", "turkish", "yiddish",
)  # fmt: skip

_STRINGS = {"type": "array", "items": {"type": "string"}}
_IDS = {"type": "array", "items": {"type": "string", "format": "uuid"}}


def _choice(*choices: str, **kwargs: Any) -> fields.String:
    return fields.String(validate=validate.OneOf(choices), **kwargs)


def _optional(max_length: int) -> Text:
    return Text(0, max_length, allow_none=True)


# Worlds.


class LawsSchema(Schema):
    """The laws of a world."""

    physics = _optional(TEXT_MAX_LENGTH)
    metaphysics = _optional(TEXT_MAX_LENGTH)
    social = _optional(TEXT_MAX_LENGTH)
    forbidden = _optional(TEXT_MAX_LENGTH)


class ChangeWorldSchema(Schema):
    """``PUT /worlds/{id}``: omitted fields keep their values. ``laws`` are replaced as a whole."""

    name = Text(1, NAME_MAX_LENGTH)
    description = _optional(TEXT_MAX_LENGTH)
    tone = _optional(TONE_MAX_LENGTH)
    backdrop = _optional(CONTENT_MAX_LENGTH)
    laws = fields.Nested(LawsSchema)
    chronology_mode = _choice(*CHRONOLOGY_MODES)


class CreateWorldSchema(ChangeWorldSchema):
    """``POST /worlds``."""

    name = Text(1, NAME_MAX_LENGTH, required=True)
    text_search = _choice(
        *TEXT_SEARCHES,
        metadata={"description": "How texts are split into words for the search; it stays."},
    )


class DuplicateWorldSchema(Schema):
    """``POST /worlds/{id}/duplicate``."""

    name = Text(1, NAME_MAX_LENGTH)
    text_search = _choice(*TEXT_SEARCHES)


class WorldSchema(RowSchema):
    """A world."""

    id = fields.UUID()
    user_id = fields.UUID()
    name = fields.String()
    description = fields.String(allow_none=True)
    tone = fields.String(allow_none=True)
    backdrop = fields.String(allow_none=True)
    laws = fields.Dict()
    chronology_mode = _choice(*CHRONOLOGY_MODES)
    text_search = _choice(*TEXT_SEARCHES)
    created_at = Timestamp()
    updated_at = Timestamp()


# Events.


class ChangeEventSchema(Schema):
    """``PUT /events/{id}``: omitted fields keep their values."""

    t = Number()
    label_time = _optional(LABEL_MAX_LENGTH)
    type = Text(1, TYPE_MAX_LENGTH)
    summary = Text(1, TEXT_MAX_LENGTH)
    description = _optional(CONTENT_MAX_LENGTH)
    location = _optional(LABEL_MAX_LENGTH)
    location_id = UuidText(allow_none=True)
    tags = Tags()
    caused_by_ids = Ids(CAUSES_MAX)


class CreateEventSchema(ChangeEventSchema):
    """``POST /worlds/{id}/events``."""

    t = Number(required=True)
    type = Text(1, TYPE_MAX_LENGTH, required=True)
    summary = Text(1, TEXT_MAX_LENGTH, required=True)


class EventSchema(RowSchema):
    """An event on the world's timeline. ``caused_by_ids`` names events of the same world."""

    id = fields.UUID()
    world_id = fields.UUID()
    t = fields.Float()
    label_time = fields.String(allow_none=True)
    type = fields.String()
    summary = fields.String()
    description = fields.String(allow_none=True)
    location = fields.String(allow_none=True)
    location_id = fields.UUID(allow_none=True)
    tags = fields.Raw(metadata=_STRINGS)
    caused_by_ids = fields.Raw(metadata=_IDS)
    created_at = Timestamp()
    updated_at = Timestamp()


# Stories.


class ChangeStorySchema(Schema):
    """``PUT /stories/{id}``: omitted fields keep their values."""

    title = Text(1, NAME_MAX_LENGTH)
    synopsis = _optional(TEXT_MAX_LENGTH)
    theme = _optional(LABEL_MAX_LENGTH)
    status = StoryStatus(
        validate=validate.OneOf((*STATUSES, StoryStatus.ALIAS)),
        metadata={"description": "`in_progress` is read as `active`."},
    )
    mode = _choice(*MODES)
    pov_type = _choice(*POV_TYPES)
    tags = Tags()


class CreateStorySchema(ChangeStorySchema):
    """``POST /worlds/{id}/stories``."""

    title = Text(1, NAME_MAX_LENGTH, required=True)


class StorySchema(RowSchema):
    """A story."""

    id = fields.UUID()
    world_id = fields.UUID()
    title = fields.String()
    synopsis = fields.String(allow_none=True)
    theme = fields.String(allow_none=True)
    status = _choice(*STATUSES)
    mode = _choice(*MODES)
    pov_type = _choice(*POV_TYPES)
    tags = fields.Raw(metadata=_STRINGS)
    archived_at = Timestamp(allow_none=True)
    created_at = Timestamp()
    updated_at = Timestamp()


class ListStoriesSchema(ListSchema):
    """Filters of a list of stories."""

    include_archived = QueryFlag()
    tag = Text(1, TAG_MAX_LENGTH)


class DeleteStorySchema(Schema):
    """``DELETE /stories/{id}``."""

    force = QueryFlag(metadata={"description": "Delete, rather than archive."})


class StoryStatisticsSchema(RowSchema):
    """What a story consists of. Words are what is between white space."""

    story_id = fields.UUID()
    beat_count = fields.Integer()
    word_count = fields.Integer()
    character_count = fields.Integer()
    ai_generated_count = fields.Integer()
    user_generated_count = fields.Integer()
    collaborative_count = fields.Integer()
    latest_beat_date = Timestamp(allow_none=True)
    world_event_links = fields.Integer()
    beat_type_distribution = fields.Dict()
    estimated_reading_minutes = fields.Integer()


# Beats.


class ChangeBeatSchema(Schema):
    """``PUT /stories/{id}/beats/{beat_id}``: omitted fields keep their values."""

    order_index = WholeNumber(0, ORDER_MAX)
    content = Text(1, CONTENT_MAX_LENGTH)
    type = _choice(*BEAT_TYPES)
    beat_type = _choice(*BEAT_TYPES, metadata={"description": "The same as `type`."})
    world_event_id = UuidText(allow_none=True)
    generated_by = _choice(*AUTHORS)
    summary = _optional(TEXT_MAX_LENGTH)
    local_time_label = _optional(LABEL_MAX_LENGTH)
    generation_reasoning = _optional(TEXT_MAX_LENGTH)

    @post_load
    def read_alias(self, data: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        """Read ``beat_type`` as ``type``."""
        if "beat_type" not in data:
            return data
        if "type" in data:
            exclusive = Message("exclusive", "Send either type or beat_type.")
            raise ValidationError({"beat_type": [exclusive]})
        rest = dict(data)
        return {"type": rest.pop("beat_type"), **rest}


class CreateBeatSchema(ChangeBeatSchema):
    """``POST /stories/{id}/beats``."""

    content = Text(1, CONTENT_MAX_LENGTH, required=True)


class ReorderBeatsSchema(Schema):
    """``POST /stories/{id}/beats/reorder``."""

    beat_ids = Ids(BEATS_PER_STORY, distinct=False, required=True)


class BeatReasoningSchema(Schema):
    """``PATCH /stories/{id}/beats/{beat_id}/reasoning``."""

    generation_reasoning = _optional(TEXT_MAX_LENGTH)


class BeatSchema(RowSchema):
    """A beat: a piece of a story, in its order."""

    id = fields.UUID()
    story_id = fields.UUID()
    order_index = fields.Integer()
    content = fields.String()
    type = _choice(*BEAT_TYPES)
    world_event_id = fields.UUID(allow_none=True)
    generated_by = _choice(*AUTHORS)
    summary = fields.String(allow_none=True)
    local_time_label = fields.String(allow_none=True)
    generation_reasoning = fields.String(allow_none=True)
    created_at = Timestamp()
    updated_at = Timestamp()


# Documents. Ids and times of the original are read, but not kept.


class ImportWorldSchema(CreateWorldSchema):
    """``world`` of a document."""

    id = fields.Raw()
    user_id = fields.Raw()
    created_at = fields.Raw()
    updated_at = fields.Raw()


class ImportEventSchema(CreateEventSchema):
    """An element of ``world_events``."""

    id = UuidText(required=True)
    world_id = fields.Raw()
    created_at = fields.Raw()
    updated_at = fields.Raw()


class ImportStorySchema(CreateStorySchema):
    """An element of ``stories``, without its beats."""

    id = fields.Raw()
    world_id = fields.Raw()
    archived_at = fields.Raw(allow_none=True)
    created_at = fields.Raw()
    updated_at = fields.Raw()


class ImportBeatSchema(CreateBeatSchema):
    """An element of ``story_beats``."""

    id = fields.Raw()
    story_id = fields.Raw()
    created_at = fields.Raw()
    updated_at = fields.Raw()


class ImportStoryWithBeatsSchema(ImportStorySchema):
    """An element of ``stories``."""

    story_beats = fields.List(fields.Nested(ImportBeatSchema))


class ImportDocumentSchema(Schema):
    """``POST /worlds/import``, for the description: the document is never loaded as a whole."""

    version = fields.String(required=True, metadata={"description": "1.0"})
    exported_at = fields.Raw()
    world = fields.Nested(ImportWorldSchema, required=True)
    world_events = fields.List(fields.Nested(ImportEventSchema))
    stories = fields.List(fields.Nested(ImportStoryWithBeatsSchema))


# Views.


class SearchSchema(Schema):
    """Query parameters of a search."""

    q = Text(
        1,
        SEARCH_MAX_LENGTH,
        required=True,
        metadata={
            "description": (
                "Words that must all occur. Quotes make a phrase, `or` an alternative, and a hyphen"
                " before a word excludes it."
            )
        },
    )
    limit = Digits(1, RESULTS_MAX, load_default=20)


# Values of fields that a request to create something may omit.
NEW_WORLD: dict[str, Any] = {
    "description": None,
    "tone": None,
    "backdrop": None,
    "laws": {"physics": None, "metaphysics": None, "social": None, "forbidden": None},
    "chronology_mode": "linear",
    "text_search": "simple",
}


def new_world(given: dict[str, Any]) -> dict[str, Any]:
    """Return the values of a new world."""
    values = {**NEW_WORLD, **given}
    return {**values, "laws": {**NEW_WORLD["laws"], **values["laws"]}}


NEW_EVENT: dict[str, Any] = {
    "label_time": None,
    "description": None,
    "location": None,
    "location_id": None,
    "tags": [],
    "caused_by_ids": [],
}
NEW_STORY: dict[str, Any] = {
    "synopsis": None,
    "theme": None,
    "status": "draft",
    "mode": "manual",
    "pov_type": "third",
    "tags": [],
}
NEW_BEAT: dict[str, Any] = {
    "order_index": None,
    "type": "scene",
    "world_event_id": None,
    "generated_by": "user",
    "summary": None,
    "local_time_label": None,
    "generation_reasoning": None,
}

WORLD = WorldSchema()
CREATE_WORLD = CreateWorldSchema()
CHANGE_WORLD = ChangeWorldSchema()
DUPLICATE_WORLD = DuplicateWorldSchema()
EVENT = EventSchema()
CREATE_EVENT = CreateEventSchema()
CHANGE_EVENT = ChangeEventSchema()
STORY = StorySchema()
CREATE_STORY = CreateStorySchema()
CHANGE_STORY = ChangeStorySchema()
LIST_STORIES = ListStoriesSchema()
DELETE_STORY = DeleteStorySchema()
STORY_STATISTICS = StoryStatisticsSchema()
BEAT = BeatSchema()
CREATE_BEAT = CreateBeatSchema()
CHANGE_BEAT = ChangeBeatSchema()
CHANGE_REASONING = BeatReasoningSchema()
REORDER_BEATS = ReorderBeatsSchema()
SEARCH = SearchSchema()
IMPORT_WORLD = ImportWorldSchema()
IMPORT_EVENT = ImportEventSchema()
IMPORT_STORY = ImportStorySchema()
IMPORT_BEAT = ImportBeatSchema()
IMPORT = ImportDocumentSchema()


def name_of_copy(name: str) -> str:
    """Return the name or title of a copy, cut to the longest that is allowed."""
    return name[: NAME_MAX_LENGTH - len(COPY_SUFFIX)] + COPY_SUFFIX
