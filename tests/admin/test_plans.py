"""What the list of users costs on 100,000 accounts: an index for every combination of filters."""

import asyncio
import itertools
import json
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from service.admin import queries
from service.admin.schemas import LIST_USERS
from service.admin.search import WALK_PER_ROW, Sample
from service.database import _set_codecs
from service.encoding import plain

ACCOUNTS = 100_000
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


def combinations() -> Iterator[dict[str, Any]]:
    """Every set of filters, all of them common or all rare, with every sort; q has a third kind."""
    for size in range(len(VALUES) + 1):
        for names in itertools.combinations(VALUES, size):
            for rank in range(3 if "q" in names else 2):
                given = {name: VALUES[name][min(rank, len(VALUES[name]) - 1)] for name in names}
                for sort in queries.SORTS:
                    yield LIST_USERS.load({**given, "sort": sort})


async def explain(conn: Any, statement: tuple[Any, ...], options: str = "") -> dict[str, Any]:
    sql, *arguments = statement
    document = await conn.fetchval(f"explain ({options} format json) {sql}", *arguments)
    plan: dict[str, Any] = plain(document)[0]["Plan"]
    return plan


async def explain_generic(conn: Any, statement: tuple[Any, ...]) -> dict[str, Any]:
    """The plan that is for any arguments, as asyncpg's statements may have from their sixth time."""
    sql, *arguments = statement
    quoted = "select string_agg(quote_literal(one), ', ') from unnest($1::text[]) as one"
    texts = [json.dumps(one) if isinstance(one, dict) else str(one) for one in arguments]
    values = await conn.fetchval(quoted, texts)
    await conn.execute("set plan_cache_mode = force_generic_plan")
    await conn.execute(f"prepare for_any as {sql}")
    plan = await explain(conn, (f"execute for_any({values})",), "analyze, buffers,")
    await conn.execute("deallocate for_any")
    await conn.execute("reset plan_cache_mode")
    return plan


def blocks_of(plan: dict[str, Any]) -> int:
    read: int = plan["Shared Hit Blocks"] + plan["Shared Read Blocks"]
    return read


def rows_read(plan: dict[str, Any]) -> Iterator[int]:
    """How many rows each of the plan's scans went through."""
    if plan["Node Type"].endswith("Scan") and "Relation Name" in plan:
        yield plan["Actual Rows"] + plan.get("Rows Removed by Filter", 0)
    for inner in plan.get("Plans", ()):
        yield from rows_read(inner)


def nodes(plan: dict[str, Any]) -> Iterator[str]:
    yield plan["Node Type"]
    for inner in plan.get("Plans", ()):
        yield from nodes(inner)


@pytest.mark.timeout(90)
async def test_every_combination_has_an_index_and_every_page_costs_the_same(conn: Any) -> None:
    await _set_codecs(conn)
    await conn.execute(SEED, ACCOUNTS, START)
    await conn.execute("vacuum analyze users")
    sample = await queries.sample_texts(conn)
    assert len(sample.addresses) > 90
    assert len(sample.names) > 90

    place = {
        "created_at": START + timedelta(minutes=ACCOUNTS // 2),
        "id": uuid.UUID(int=0),
        "email_folded": "user5@example.com",
    }
    tried = 0
    for filters in combinations():
        keyset = queries.SORTS[filters["sort"]]
        for page in (None, [place[name] for name in keyset.columns]):
            # A second one is for where a walk has not filled the page: see below.
            statement, *_ = queries.select_accounts(filters, sample, keyset, page, 51)
            plan = await explain(conn, statement)
            assert "Seq Scan" not in set(nodes(plan)), (filters, page, plan)
            tried += 1
    assert tried == 2 * 4 * (2 * 2 ** len(VALUES) + 2 ** (len(VALUES) - 1))

    for sort, keyset in queries.SORTS.items():
        pages = []
        after: list[object] | None = None
        for number in range(1, 401):
            [statement] = queries.select_accounts({}, Sample(), keyset, after, 200)
            if number in (1, 400):
                pages.append(blocks_of(await explain(conn, statement, "analyze, buffers,")))
            sql, *arguments = statement
            last = (await conn.fetch(sql, *arguments))[-1]
            after = [last[name] for name in keyset.columns]
        assert max(pages) <= 1.2 * min(pages) + 5, (sort, pages)

    # Those of a role or a status are there in the order that is asked for; not all of them are read,
    # nor all 1,000 that have both, of which the planner knows by its statistics alone.
    for filters in (
        {"role": "support"},
        {"status": "suspended"},
        {"role": "support", "status": "suspended"},
        {"role": "user", "status": "suspended"},
    ):
        for sort, keyset in queries.SORTS.items():
            query = LIST_USERS.load(filters)
            [statement] = queries.select_accounts(query, Sample(), keyset, None, 51)
            plan = await explain(conn, statement, "analyze, buffers,")
            assert blocks_of(plan) < 150, (filters, sort, plan)

    # An address by which PostgreSQL guesses, of which it would expect a thousand, is not one of many;
    # nor is there more than one account of an address.
    for given, count in (
        ({"q": sample.addresses[50][0]}, 1),
        ({"q": "user5000"}, 1),
        ({"q": "example"}, 2),
        ({"q": "Name "}, 2),
        ({"q": "example", "email": "user500@example.com"}, 1),
    ):
        query = LIST_USERS.load(given)
        keyset = queries.SORTS[query["sort"]]
        assert len(queries.select_accounts(query, sample, keyset, None, 51)) == count, given

    # A walk has a bound, for whatever it is: what all have, which fills the page; with filters whose
    # order is another one; addresses that are all at one end of the order; what one has, or none.
    last_tenth = (START + timedelta(minutes=ACCOUNTS * 9 // 10)).isoformat()
    for given, fills in (
        ({"q": "example"}, True),
        ({"q": "Name "}, True),
        ({"q": "example", "role": "support"}, True),
        ({"q": "example", "role": "user", "status": "suspended"}, True),
        ({"q": "example", "created_after": last_tenth}, None),
        ({"q": "user9"}, None),
        ({"q": "user9", "status": "active"}, None),
        ({"q": "example", "settings": '{"plan": 7}'}, False),
        ({"q": sample.addresses[50][0]}, False),
        ({"q": "nobody"}, False),
    ):
        query = LIST_USERS.load(given)
        for keyset, later in itertools.product(queries.SORTS.values(), (False, True)):
            after = [place[name] for name in keyset.columns] if later else None
            walk, search = queries.select_accounts(query, Sample(), keyset, after, 51)
            for plan in await explain(conn, walk, "analyze,"), await explain_generic(conn, walk):
                assert max(rows_read(plan)) <= 2 * WALK_PER_ROW * 51, (given, plan)
            assert "Seq Scan" not in set(nodes(await explain_generic(conn, search)))
            found = [row["id"] for row in await conn.fetch(*walk)]
            if fills is not None:
                assert (len(found) == 51) == fills, (given, keyset, later)
            every = [row["id"] for row in await conn.fetch(*search)]
            assert found == every[: len(found)]
            [*_, narrow] = queries.select_accounts(query, sample, keyset, after, 51)
            assert every == [row["id"] for row in await conn.fetch(*narrow)]

    # Nor is more asked for than fills the page.
    asked: list[str] = []
    conn.add_query_logger(lambda record: asked.append(record.query))
    for sort, expected in (
        ("-created_at", ["sample", "walk"]),
        ("email", ["sample", "walk", "index"]),
    ):
        query = LIST_USERS.load({"q": "user9"})
        asked.clear()
        rows = await queries.list_accounts(conn, query, queries.SORTS[sort], None, 51)
        await asyncio.sleep(0)  # asyncpg tells in the loop's next turn
        assert len(rows) == 51
        assert [
            "sample" if "pg_stats" in sql else "walk" if "walked" in sql else "index"
            for sql in asked
        ] == expected

    hour = {"created_after": START, "created_before": START + timedelta(hours=1)}
    # A time that is over before it begins.
    over = {"created_after": START + timedelta(hours=1), "created_before": START}
    for sort in ("email", "-email"):
        [statement] = queries.select_accounts(hour, Sample(), queries.SORTS[sort], None, 51)
        assert blocks_of(await explain_generic(conn, statement)) < 200
        [statement] = queries.select_accounts(over, Sample(), queries.SORTS[sort], None, 51)
        assert blocks_of(await explain_generic(conn, statement)) == 0


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


async def test_a_search_asks_for_what_is_rare_and_for_nothing_that_is_not(conn: Any) -> None:
    """It reads less than it would with the whole text, and finds the same."""
    await _set_codecs(conn)
    await conn.execute(PEOPLE, 30_000, START)
    await conn.execute("vacuum analyze users")
    sample = await queries.sample_texts(conn)
    addresses = [
        row["email"]
        for row in await conn.fetch("select email from users where email ~ '[05]1[0-9]@'")
    ]
    samples = {"rare": sample, "whole": Sample()}
    blocks = dict.fromkeys(samples, 0)
    for address in addresses[:40]:
        for q in (address, address.partition(".")[2], address.rpartition(".")[0]):
            query = LIST_USERS.load({"q": q})
            for asked, known in samples.items():
                *_, statement = queries.select_accounts(
                    query, known, queries.SORTS["-created_at"], None, 51
                )
                plan = await explain(conn, statement, "analyze, buffers,")
                assert {"Seq Scan", "Index Scan"}.isdisjoint(nodes(plan)), (q, plan)
                assert plan["Actual Rows"] == 1
                blocks[asked] += blocks_of(plan)
    assert blocks["rare"] < 0.6 * blocks["whole"], blocks
    # What many have is common, however few values of the sample tell: what they stand for counts.
    query = LIST_USERS.load({"q": "captain"})
    assert len(queries.select_accounts(query, sample, queries.SORTS["email"], None, 51)) == 2
    shares = {"": 0.0, "captain": 0.0, "doctor": 0.0, "others": 0.0}
    for name, share in sample.names:
        shares[name if name in shares else "others"] += share
    assert shares == pytest.approx(
        {"": 0.4, "captain": 0.2, "doctor": 0.2, "others": 0.2}, abs=0.02
    )
