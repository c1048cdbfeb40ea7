"""What responses consist of, other than rows: views, documents, and rows within rows."""

from typing import Any, ClassVar

from marshmallow import fields

from service.http.descriptions import Shape, array_of, object_of, ref
from service.worlds.lists import LIST_MAX
from service.worlds.schemas import BEAT, EVENT, RESULTS_MAX, WORLD, BeatSchema, StorySchema

_ID = {"type": "string", "format": "uuid"}
_TEXT = {"type": "string"}
_OPTIONAL_TEXT = {"type": ["string", "null"]}
_COUNT = {"type": "integer", "minimum": 0}
_NUMBER = {"type": "number"}


class StoryOfBeat(fields.Field[dict[str, Any]]):
    """The story that a beat belongs to."""

    json_schema: ClassVar = ref("Story")


class BeatWithStorySchema(BeatSchema):
    """A beat with its story."""

    story = StoryOfBeat()


class BeatsOfStory(fields.Field[list[Any]]):
    """The beats of a story, in their order."""

    json_schema: ClassVar = array_of(BEAT)


class StoryWithBeatsSchema(StorySchema):
    """A story with its beats."""

    story_beats = BeatsOfStory()


BEAT_WITH_STORY = BeatWithStorySchema()
STORY_WITH_BEATS = StoryWithBeatsSchema()
GRAPH = Shape(
    "DependencyGraph",
    object_of(
        world_id=_ID,
        nodes=array_of(object_of(id=_ID, label=_TEXT, t=_NUMBER, type=_TEXT, summary=_TEXT)),
        edges=array_of(object_of(source=_ID, target=_ID, type={"const": "causes"})),
    ),
)
TIMELINE = Shape(
    "Timeline",
    {
        **array_of(
            object_of(
                event=EVENT,
                stories=array_of(object_of(id=_ID, title=_TEXT)),
                beats=array_of(
                    object_of(
                        id=_ID,
                        story_id=_ID,
                        order_index=_COUNT,
                        type=_TEXT,
                        local_time_label=_OPTIONAL_TEXT,
                    )
                ),
            )
        ),
        "maxItems": LIST_MAX,
    },
)
DOCUMENT = Shape(
    "WorldDocument",
    object_of(
        version={"type": "string", "description": "1.0"},
        exported_at={"type": "string", "format": "date-time"},
        world=WORLD,
        world_events=array_of(EVENT),
        stories=array_of(STORY_WITH_BEATS),
    ),
)
INTERSECTIONS = Shape(
    "Intersections",
    {
        **array_of(
            object_of(
                stories={
                    **array_of(object_of(id=_ID, title=_TEXT)),
                    "minItems": 2,
                    "maxItems": 2,
                },
                events=array_of(object_of(id=_ID, t=_NUMBER, label_time=_OPTIONAL_TEXT)),
            )
        ),
        "maxItems": LIST_MAX,
    },
)
RESULTS = Shape(
    "SearchResults",
    object_of(
        total=_COUNT,
        results={
            **array_of(
                object_of(
                    kind={"type": "string", "enum": ["event", "story", "beat"]},
                    id=_ID,
                    story_id={"type": ["string", "null"], "format": "uuid"},
                    rank=_NUMBER,
                    snippet=array_of(object_of(text=_TEXT, match={"type": "boolean"})),
                )
            ),
            "maxItems": RESULTS_MAX,
        },
    ),
)
STORY_TAGS = Shape("StoryTags", object_of(tags={"type": "array", "items": {"type": "string"}}))
