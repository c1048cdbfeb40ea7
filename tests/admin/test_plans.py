"""What the list of users costs on 100,000 accounts: an index for every combination of filters."""

import asyncio
import itertools
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from service.admin import lists
from service.admin.queries import select_sessions
from service.admin.schemas import LIST_USERS
from service.database import _set_codecs
from tests.support.plans import (
    assert_is_planned_anew,
    blocks_of,
    explain,
    explain_both,
    node_types,
    rows_read,
)

ACCOUNTS = 100_000
WALKS = (*lists.FIRST_WALKS, lists.WALK_PER_ROW * 51)
START = datetime(2020, 1, 1, tzinfo=UTC)

SEED = """
insert into users (id, email, email_folded, name, role, settings, status, suspension_reason,
                   purge_at, created_at, updated_at)
select gen_random_uuid(), 'user' || n || '@example.com', 'user' || n || '@example.com',
       'Name ' || md5(n::text),
       case when n % 20000 = 0 then 'admin' when n % 100 = 0 then 'support' else 'user' end,
       jsonb_build_object('language', (array['en', 'fr', 'de'])[n % 3 + 1], 'plan', n % 1000),
       case when n % 50 = 0 then 'suspended' when n % 300 = 1 then 'deleting' else 'active' end,
       case when n % 50 = 0 then 'x' end,
       case when n % 300 = 1 then now() end,
       t, t
from generate_series(1, $1) n, lateral (select $2::timestamptz + n * interval '1 minute' as t) as times
"""

# A common and a rare value of each, since the planner chooses by how many rows it expects.
VALUES: dict[str, tuple[str, ...]] = {
    "email": ("user500@example.com",),
    "q": ("example", "user5000", "-a-"),
    "status": ("active", "suspended"),
    "role": ("user", "admin"),
    "created_after": (
        (START + timedelta(minutes=10)).isoformat(),
        (START + timedelta(minutes=ACCOUNTS - 10)).isoformat(),
    ),
    "created_before": (
        (START + timedelta(minutes=ACCOUNTS - 10)).isoformat(),
        (START + timedelta(minutes=10)).isoformat(),
    ),
    "settings": ('{"language": "fr"}', '{"plan": 7}'),
}


def combinations() -> Iterator[tuple[bool, dict[str, Any]]]:
    """Every set of filters, all of them common or all rare, with every sort; q has a third kind."""
    for size in range(len(VALUES) + 1):
        for names in itertools.combinations(VALUES, size):
            for rank in range(3 if "q" in names else 2):
                given = {name: VALUES[name][min(rank, len(VALUES[name]) - 1)] for name in names}
                for sort in lists.SORTS:
                    yield rank > 0, LIST_USERS.load({**given, "sort": sort})


def is_ordered(filters: dict[str, Any]) -> bool:
    """Whether an index has the order with all of these filters, or there is one account at most."""
    by_address = filters["sort"].endswith("email") and ("created_after", "created_before")
    return "email" in filters or filters.keys().isdisjoint({"q", "settings", *(by_address or ())})


def kind_of(sql: str) -> str:
    names = {"pg_stats": "sample", "as walked": "walk", "as found": "find"}
    return next((kind for text, kind in names.items() if text in sql), "select")


@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_every_combination_has_an_index_and_every_page_costs_the_same(conn: Any) -> None:
    await _set_codecs(conn)
    await conn.execute(SEED, ACCOUNTS, START)
    await conn.execute("vacuum analyze users")
    addresses = await lists.sample_addresses(conn)
    assert len(addresses) > 90

    place = {
        "created_at": START + timedelta(minutes=ACCOUNTS // 2),
        "id": uuid.UUID(int=0),
        "email_folded": "user5@example.com",
    }
    tried = 0
    for rare, filters in combinations():
        keyset = lists.SORTS[filters["sort"]]
        after: list[object] | None
        for after in (None, [place[name] for name in keyset.columns]):
            page = (filters, keyset, after, 51)
            if is_ordered(filters):
                statements = [lists.select_accounts(*page)]
            else:
                statements = [lists.walk_accounts(*page, WALKS[-1])]
                # What is common has filled the page.
                statements += [lists.find_accounts(*page, addresses)] if rare else []
            for statement in statements:
                plan = await explain(conn, statement)
                assert "Seq Scan" not in node_types(plan), (statement, plan)
            tried += 1
    assert tried == 2 * 4 * (2 * 2 ** len(VALUES) + 2 ** (len(VALUES) - 1))

    for sort, keyset in lists.SORTS.items():
        pages = []
        after = None
        for number in range(1, 401):
            statement = lists.select_accounts({}, keyset, after, 200)
            if number in (1, 400):
                pages.append(blocks_of(await explain(conn, statement, "analyze, buffers,")))
            sql, *arguments = statement
            last = (await conn.fetch(sql, *arguments))[-1]
            after = [last[name] for name in keyset.columns]
        assert max(pages) <= 1.2 * min(pages) + 5, (sort, pages)

    # What has an index in the page's order is read from there on, wherever a time ends: those of a
    # role, of a status or of both, however few those are.
    late = (START + timedelta(minutes=ACCOUNTS - 10)).isoformat()
    early = (START + timedelta(minutes=10)).isoformat()
    for filters in (
        {"role": "support"},
        {"status": "suspended"},
        {"role": "support", "status": "suspended"},
        {"role": "user", "status": "suspended"},
        {"role": "user", "status": "deleting"},
        {"role": "admin", "status": "active"},
        {"role": "admin", "status": "deleting"},
        {"created_after": early, "created_before": late},
        {"created_after": early, "created_before": late, "role": "user"},
    ):
        for keyset, later in itertools.product(lists.SORTS.values(), (False, True)):
            if "created_before" in filters and "created_at" not in keyset.columns:
                continue
            after = [place[name] for name in keyset.columns] if later else None
            statement = lists.select_accounts(LIST_USERS.load(filters), keyset, after, 51)
            for plan in await explain_both(conn, statement):
                assert blocks_of(plan) < 150, (filters, keyset, later, plan)

    # A walk has a bound, for whatever it is: what all have, which fills the page; with filters whose
    # order is another one; addresses that are all at one end of the order; what one has, or none.
    last_tenth = (START + timedelta(minutes=ACCOUNTS * 9 // 10)).isoformat()
    for given, fills in (
        ({"q": "example"}, True),
        ({"q": "Name "}, True),
        ({"q": "example", "role": "support"}, True),
        ({"q": "example", "role": "user", "status": "suspended"}, True),
        ({"q": "example", "role": "user", "status": "deleting"}, True),
        ({"q": "example", "role": "admin", "status": "deleting"}, False),
        ({"settings": '{"language": "fr"}'}, True),
        ({"q": "example", "created_after": last_tenth}, None),
        ({"q": "nobody", "created_after": early, "created_before": late}, False),
        ({"settings": '{"plan": 7}', "created_after": early, "created_before": late}, False),
        ({"q": "user9"}, None),
        ({"q": "user9", "status": "active"}, None),
        ({"q": "example", "settings": '{"plan": 7}'}, False),
        ({"settings": '{"plan": 7}'}, False),
        ({"q": addresses[50]}, False),
        ({"q": "nobody"}, False),
    ):
        query = LIST_USERS.load(given)
        for keyset, later in itertools.product(lists.SORTS.values(), (False, True)):
            page = (query, keyset, [place[name] for name in keyset.columns] if later else None, 51)
            search = lists.find_accounts(*page, ())
            every = [row["id"] for row in await conn.fetch(*search)]
            assert every == [
                row["id"] for row in await conn.fetch(*lists.find_accounts(*page, addresses))
            ]
            if fills is not True:
                assert "Seq Scan" not in node_types(await explain(conn, search))
            found = []
            for length in WALKS[::2]:
                walk = lists.walk_accounts(*page, length)
                for plan in await explain_both(conn, walk):
                    assert max(rows_read(plan)) <= 2 * length, (given, plan)
                found = [row["id"] for row in await conn.fetch(*walk)]
                assert found == every[: len(found)]
            if fills is not None:
                assert (len(found) == 51) == fills, (given, keyset, later)

    # An hour, and a time that is over before it begins, in the order of addresses.
    hour = {"created_after": START, "created_before": START + timedelta(hours=1)}
    over = {"created_after": START + timedelta(hours=1), "created_before": START}
    for sort, times in itertools.product(("email", "-email"), (hour, over)):
        statement = lists.find_accounts(times, lists.SORTS[sort], None, 51, ())
        assert blocks_of(await explain(conn, statement, "analyze, buffers,")) < 200

    # What is rare is found by its own index, beside what many have, however often it is asked for.
    wide = {"created_after": early, "created_before": late}
    for common, rare_one in itertools.product(
        (wide, {"role": "user", "status": "active"}, {"settings": '{"language": "fr"}'}),
        ({"q": "user5000"}, {"settings": '{"plan": 7}'}),
    ):
        query = LIST_USERS.load({**common, **rare_one})
        statement = lists.find_accounts(query, lists.SORTS["email"], None, 51, addresses)
        assert blocks_of(await explain(conn, statement, "analyze, buffers,")) < 300, query
        await assert_is_planned_anew(conn, statement)
        for _ in range(10):
            await lists.count_accounts(conn, query)
    kept = await conn.fetchval(
        """
        select sum(generic_plans) from pg_prepared_statements
        where statement like 'select count(*) from users%'
        """
    )
    assert kept == 0


async def test_a_walk_has_a_bound_among_accounts_that_were_imported_in_any_order(conn: Any) -> None:
    """Two times seem to leave few, and one by one those seem dearer than all at once, sorted."""
    await _set_codecs(conn)
    await conn.execute(f"{SEED} order by md5(n::text)", 10_000, START)
    await conn.execute("vacuum analyze users")
    wide = {"created_after": START, "created_before": START + timedelta(minutes=10_000)}
    for length in WALKS[:2]:
        walk = lists.walk_accounts(
            wide | {"q": ("nobody", "nobody")}, lists.SORTS["-created_at"], None, 51, length
        )
        assert max(rows_read(await explain(conn, walk, "analyze,"))) <= length
        await assert_is_planned_anew(conn, walk)


async def test_few_have_both_a_role_and_a_status_that_many_have(conn: Any) -> None:
    await _set_codecs(conn)
    await conn.execute(
        """
        insert into users (id, email, email_folded, name, role, status, suspension_reason, created_at)
        select gen_random_uuid(), address, address, '', case when n % 5 = 0 then 'support' else 'user' end,
               case when suspended then 'suspended' else 'active' end,
               case when suspended then 'x' end, $1::timestamptz + n * interval '1 minute'
        from generate_series(1, 10000) n,
             lateral (select n || '@example.com', n % 5 = 1 or n % 2000 = 0) as those (address, suspended)
        """,
        START,
    )
    await conn.execute("vacuum analyze users")
    filters = {"role": "support", "status": "suspended"}
    for keyset in lists.SORTS.values():
        for plan in await explain_both(conn, lists.select_accounts(filters, keyset, None, 51)):
            assert plan["Actual Rows"] == 5
            assert blocks_of(plan) < 20, plan


@pytest.mark.slow
async def test_no_more_is_asked_for_than_fills_a_page(conn: Any) -> None:
    """And a walk goes on only where what it met last promises that it fills it."""
    await _set_codecs(conn)
    await conn.execute(SEED, 30_000, START)
    for name, condition, minutes in (("beta", "<", 3_000), ("gamma", ">", 30_000 - 40)):
        await conn.execute(
            f"update users set settings = settings || $1 where created_at {condition} $2",
            {name: True},
            START + timedelta(minutes=minutes),
        )
    await conn.execute("vacuum analyze users")
    for given, kinds in (
        ({}, "select"),
        ({"role": "user"}, "select"),
        ({"role": "user", "status": "active"}, "select"),
        ({"role": "admin", "status": "active"}, "select"),
        ({"created_after": START.isoformat()}, "select"),
        ({"email": "user500@example.com", "q": "example", "settings": "{}"}, "select"),
        ({"q": "example"}, "walk"),
        ({"q": "example", "role": "support", "sort": "email"}, "walk"),
        ({"settings": '{"language": "fr"}'}, "walk"),
        # One of sixteen: 12 are met in the first walk, which is a promise.
        ({"q": "Name a"}, "walk, walk"),
        ({"q": "Name a", "limit": "1"}, "walk"),
        ({"q": "Name a", "limit": "200"}, "walk, walk, walk"),
        ({"settings": '{"beta": true}', "sort": "created_at"}, "walk"),
        # PostgreSQL would expect one in ten of what it walks through, and read 27,000.
        ({"settings": '{"beta": true}'}, "walk, find"),
        # The newest forty have it, and none of those that the second walk adds.
        ({"settings": '{"gamma": true}'}, "walk, walk, find"),
        ({"settings": '{"gamma": true}', "limit": "20"}, "walk"),
        ({"settings": '{"plan": 7}'}, "walk, find"),
        ({"settings": '{"plan": 7}', "limit": "1"}, "walk, find"),
        ({"settings": '{"plan": 7}', "limit": "200"}, "walk, find"),
        ({"q": "user500@"}, "walk, sample, find"),
        ({"q": "user9", "sort": "email"}, "walk, sample, find"),
        ({"created_before": "2020-01-01T01:00:00Z", "sort": "email"}, "walk, find"),
    ):
        query = LIST_USERS.load(given)
        page = (query, lists.SORTS[query["sort"]], None, query["limit"] + 1)
        every = await conn.fetch(*lists.find_accounts(*page, ()))
        asked: list[Any] = []
        with conn.query_logger(asked.append):
            rows = await lists.list_accounts(conn, *page)
            await asyncio.sleep(0)  # asyncpg tells in the loop's next turn
        assert ", ".join(kind_of(record.query) for record in asked) == kinds, given
        assert [row["id"] for row in rows] == [row["id"] for row in every]


PEOPLE = """
insert into users (id, email, email_folded, name, created_at)
select gen_random_uuid(), address, address,
       (array['', '', 'Captain', 'Doctor', md5(n::text)])[n % 5 + 1], $2::timestamptz + n * interval '1 minute'
from (
    select string_to_array('ada grace ivan ivana maria marie mario john johanna sam lena elena', ' '),
           string_to_array('novak ivanova smith smirnova jones hopper lovelace lopez brown', ' '),
           string_to_array('gmail.com gmail.com gmail.com outlook.com example.org', ' ')
) as words (first, last, domain), generate_series(0, $1 - 1) n, lateral (
    select format('%s.%s.%s@%s', first[n % 12 + 1], last[n / 7 % 9 + 1], to_hex(n), domain[n % 5 + 1])
) as addresses (address)
"""


@pytest.mark.slow
async def test_a_search_asks_for_what_is_rare_and_for_nothing_that_is_not(conn: Any) -> None:
    """It reads less than it would with the whole text, and finds the same."""
    await _set_codecs(conn)
    await conn.execute(PEOPLE, 30_000, START)
    await conn.execute("vacuum analyze users")
    sample = await lists.sample_addresses(conn)
    addresses = [
        row["email"]
        for row in await conn.fetch("select email from users where email ~ '[05]1[0-9]@'")
    ]
    samples = {"rare": sample, "whole": ()}
    blocks = dict.fromkeys(samples, 0)
    for address in addresses[:40]:
        for q in (address, address.partition(".")[2], address.rpartition(".")[0]):
            query = LIST_USERS.load({"q": q})
            for asked, known in samples.items():
                statement = lists.find_accounts(query, lists.SORTS["-created_at"], None, 51, known)
                plan = await explain(conn, statement, "analyze, buffers,")
                assert {"Seq Scan", "Index Scan"}.isdisjoint(node_types(plan)), (q, plan)
                assert plan["Actual Rows"] == 1
                blocks[asked] += blocks_of(plan)
    assert blocks["rare"] < 0.6 * blocks["whole"], blocks


async def test_a_page_of_sessions_is_read_without_all_the_others(conn: Any) -> None:
    await _set_codecs(conn)
    user, other = uuid.UUID(int=1), uuid.UUID(int=2)
    for one in (user, other):
        await conn.execute(
            "insert into users (id, email, email_folded, name) values ($1, $2, $2, '')",
            one,
            str(one),
        )
        await conn.execute(
            """
            insert into sessions (id, user_id, expires_at, idle_expires_at)
            select gen_random_uuid(), $1, now() + interval '1 day', now() + interval '1 day'
            from generate_series(1, 10000)
            """,
            one,
        )
    await conn.execute("vacuum analyze sessions")
    places: list[list[object] | None] = [None, [uuid.UUID(int=2**127)]]
    for after in places:
        for plan in await explain_both(conn, select_sessions(user, after, 51)):
            assert plan["Actual Rows"] == 51
            assert blocks_of(plan) < 80, plan
