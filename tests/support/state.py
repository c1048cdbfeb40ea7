"""What is stored."""

from typing import Any


async def everything(conn: Any) -> Any:
    """Return the state that a refused request must not change."""
    return await conn.fetch(
        "select (select jsonb_agg(to_jsonb(users) - 'swept_epoch' order by id) from users),"
        " (select jsonb_agg(to_jsonb(sessions) order by sessions.id) from sessions"
        "  join users on users.id = user_id where epoch = session_epoch and expires_at > now()),"
        " (select count(*) from audit_events), (select count(*) from action_tokens),"
        " (select jsonb_agg(to_jsonb(factors) order by id) from factors),"
        " (select count(*) from recovery_codes), (select count(*) from used_challenges),"
        " (select jsonb_agg(to_jsonb(sign_in_challenges)) from sign_in_challenges),"
        " (select jsonb_agg(worlds order by id) from worlds),"
        " (select jsonb_agg(world_events order by id) from world_events),"
        " (select jsonb_agg(event_causes order by event_id) from event_causes),"
        " (select jsonb_agg(stories order by id) from stories),"
        " (select jsonb_agg(story_beats order by id) from story_beats)"
    )
