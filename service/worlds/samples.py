"""Example rows, for the API's description."""

from typing import Any

from service.http import examples

WORLD_EXAMPLE = {
    "id": "0192f0c1-2a4b-7c3d-8e5f-6a7b8c9d0e1f",
    "user_id": examples.USER_ID,
    "name": "Orrery",
    "description": "A city inside a clock.",
    "tone": None,
    "backdrop": None,
    "laws": {
        "physics": "Light is slow.",
        "metaphysics": None,
        "social": None,
        "forbidden": None,
    },
    "chronology_mode": "linear",
    "text_search": "english",
    "created_at": examples.CREATED_AT,
    "updated_at": examples.SEEN_AT,
}
EVENT_EXAMPLE: dict[str, Any] = {
    "id": "0192f0c1-3b5c-7d4e-9f60-7b8c9d0e1f2a",
    "world_id": WORLD_EXAMPLE["id"],
    "t": 2145.0,
    "label_time": "Year 2145",
    "type": "major",
    "summary": "The sun sets.",
    "description": None,
    "location": "The harbour",
    "location_id": None,
    "tags": [],
    "caused_by_ids": [],
    "created_at": examples.CREATED_AT,
    "updated_at": examples.CREATED_AT,
}
STORY_EXAMPLE = {
    "id": "0192f0c1-4c6d-7e5f-a071-8c9d0e1f2a3b",
    "world_id": WORLD_EXAMPLE["id"],
    "title": "The Lamplighter",
    "synopsis": "",
    "theme": None,
    "status": "draft",
    "mode": "manual",
    "pov_type": "first",
    "tags": ["sea"],
    "archived_at": None,
    "created_at": examples.CREATED_AT,
    "updated_at": examples.CREATED_AT,
}
BEAT_EXAMPLE = {
    "id": "0192f0c1-5d7e-7f60-b182-9d0e1f2a3b4c",
    "story_id": STORY_EXAMPLE["id"],
    "order_index": 1,
    "content": "The lamp went out.",
    "type": "scene",
    "world_event_id": EVENT_EXAMPLE["id"],
    "generated_by": "user",
    "summary": None,
    "local_time_label": None,
    "generation_reasoning": None,
    "created_at": examples.CREATED_AT,
    "updated_at": examples.CREATED_AT,
}
STATISTICS_EXAMPLE = {
    "story_id": STORY_EXAMPLE["id"],
    "beat_count": 1,
    "word_count": 4,
    "character_count": 18,
    "ai_generated_count": 0,
    "user_generated_count": 1,
    "collaborative_count": 0,
    "latest_beat_date": examples.CREATED_AT,
    "world_event_links": 1,
    "beat_type_distribution": {"scene": 1},
    "estimated_reading_minutes": 1,
}
