"""How much PostgreSQL reads for a page of accounts, or of an account's sessions."""

import asyncio
import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from service.admin import lists
from service.admin.schemas import LIST_USERS
from service.db.pool import _set_codecs
from service.sessions.queries import select_sessions
from tests.support.plans import (
    blocks_of,
    count_generic_plans,
    explain,
    explain_both,
    node_types,
    rows_read,
)

ACCOUNTS = 6_000
LIMIT = 11
WALK = lists.WALK_PER_ROW * LIMIT
START = datetime(2020, 1, 1, tzinfo=UTC)

# The oldest twentieth are founders; each plan belongs to one account in a hundred. One in a thousand
# is an administrator. The oldest two fifths have a second factor, as does every hundredth of the
# others, but one administrator in three has none.
SEED = """
insert into users (id, email, email_folded, name, role, settings, status, suspension_reason,
                   has_second_factor, created_at)
select gen_random_uuid(), email, email, 'Name ' || md5(n::text),
       case when n % 1000 = 500 then 'admin' when n % 10 = 0 then 'support' else 'user' end,
       jsonb_build_object('language', (array['en', 'fr'])[n % 2 + 1], 'plan', n % 100,
                          'founder', n <= $1 / 20),
       case when n % 4 = 1 or n % 2000 = 0 then 'suspended' else 'active' end,
       case when n % 4 = 1 or n % 2000 = 0 then 'x' end,
       (n <= $1 * 2 / 5 or n % 100 = 0) and n % 3000 <> 500,
       $2::timestamptz + n * interval '1 minute'
from generate_series(1, $1) n,
     lateral (select 'user' || n || '@mail.example') as emails (email)
"""

COMMON = [
    {"q": "@mail.example"},
    {"q": "user", "role": "support", "status": "active"},
    {"settings": '{"language": "fr"}'},
    {"created_after": "2020-01-01T01:00:00Z", "sort": "email"},
    *(
        {"has_second_factor": has, "role": "user", "status": "active", "sort": sort}
        for has in ("true", "false")
        for sort in lists.SORTS
    ),
]
SELECTIVE = [
    {"q": "user3210@mail.example"},
    {"q": "user3210", "role": "user", "created_after": "2020-01-01T01:00:00Z"},
    {"settings": '{"plan": 7}'},
    {"settings": '{"plan": 7, "language": "fr"}'},
    {"created_before": "2020-01-01T01:00:00Z", "sort": "-email"},
    *({"has_second_factor": "false", "role": "admin", "sort": sort} for sort in lists.SORTS),
    *({"has_second_factor": "true", "role": "admin", "sort": sort} for sort in lists.SORTS),
]


@pytest.fixture
async def accounts(conn: Any) -> Any:
    await _set_codecs(conn)
    await conn.execute(SEED, ACCOUNTS, START)
    await conn.execute("vacuum analyze users")
    return conn


def page_of(given: dict[str, str]) -> tuple[Any, ...]:
    query = LIST_USERS.load(given)
    return query, lists.SORTS[query["sort"]], None, LIMIT


async def count_statements(conn: Any, page: tuple[Any, ...]) -> int:
    """Count the statements that read accounts for the page."""
    logged: list[Any] = []
    with conn.query_logger(logged.append):
        await lists.list_accounts(conn, *page)
        await asyncio.sleep(0)  # asyncpg calls its loggers in the loop's next iteration
    return sum("from users" in record.query for record in logged)


async def test_every_sort_order_is_read_from_an_index(accounts: Any) -> None:
    place = {
        "created_at": START + timedelta(minutes=ACCOUNTS // 2),
        "id": uuid.UUID(int=0),
        "email_folded": "user5",
    }
    for keyset in lists.SORTS.values():
        for after in (None, [place[name] for name in keyset.columns]):
            for filters in (
                {},
                {"role": "support"},
                {"status": "suspended"},
                {"has_second_factor": True},
                {"has_second_factor": False},
            ):
                page = lists.walk_accounts(filters, keyset, after, LIMIT)
                for plan in await explain_both(accounts, page):
                    assert "Sort" not in node_types(plan), (filters, keyset)
                    assert max(rows_read(plan)) <= ACCOUNTS / 50, (filters, keyset)


async def test_rare_role_and_status_combination_reads_only_matching_rows(accounts: Any) -> None:
    filters = {"role": "support", "status": "suspended"}
    for keyset in lists.SORTS.values():
        for plan in await explain_both(accounts, lists.walk_accounts(filters, keyset, None, LIMIT)):
            assert max(rows_read(plan)) == 3, keyset


async def test_common_filter_is_answered_by_the_walk_alone(accounts: Any) -> None:
    for given in COMMON:
        assert await count_statements(accounts, page_of(given)) == 1, given


async def test_selective_filter_is_answered_by_an_index(accounts: Any) -> None:
    for given in SELECTIVE:
        assert await count_statements(accounts, page_of(given)) == 2, given
        plan = await explain(accounts, lists.find_accounts(*page_of(given)), "analyze,")
        assert max(rows_read(plan)) <= ACCOUNTS / 50, (given, plan)


async def test_walk_reads_a_bounded_number_of_rows(accounts: Any) -> None:
    for given in (*COMMON, *SELECTIVE, {"settings": '{"founder": true}'}):
        plan = await explain(accounts, lists.walk_accounts(*page_of(given)), "analyze,")
        assert max(rows_read(plan)) <= 2 * WALK, (given, plan)


async def test_search_never_uses_a_generic_plan(accounts: Any) -> None:
    """A generic plan would scan years of accounts to find one email."""
    query, *place = page_of({"q": "user3210", "created_after": "2020-01-01T01:00:00Z"})
    for _ in range(10):
        await lists.list_accounts(accounts, query, *place)
        await lists.count_accounts(accounts, query)
    assert await count_generic_plans(accounts) == 0


async def test_session_page_reads_only_its_own_rows(conn: Any) -> None:
    await _set_codecs(conn)
    user, other = uuid.UUID(int=1), uuid.UUID(int=2)
    for owner in (user, other):
        await conn.execute(
            "insert into users (id, email, email_folded, name) values ($1, $2, $2, '')",
            owner,
            str(owner),
        )
        await conn.execute(
            """
            insert into sessions (id, user_id, expires_at, idle_expires_at)
            select gen_random_uuid(), $1, now() + interval '1 day', now() + interval '1 day'
            from generate_series(1, 3000)
            """,
            owner,
        )
    await conn.execute("vacuum analyze sessions")
    places: list[list[object] | None] = [None, [uuid.UUID(int=2**127)]]
    for after in places:
        for plan in await explain_both(conn, select_sessions(user, after, LIMIT)):
            assert plan["Actual Rows"] == LIMIT
            assert blocks_of(plan) < 80, plan
