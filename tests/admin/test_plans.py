"""What the list of users costs on 100,000 accounts: an index for every combination of filters."""

import itertools
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from service.admin import queries
from service.admin.schemas import LIST_USERS
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


def nodes(plan: dict[str, Any]) -> Iterator[str]:
    yield plan["Node Type"]
    for inner in plan.get("Plans", ()):
        yield from nodes(inner)


@pytest.mark.timeout(90)
async def test_every_combination_has_an_index_and_every_page_costs_the_same(conn: Any) -> None:
    await _set_codecs(conn)
    await conn.execute(SEED, ACCOUNTS, START)
    await conn.execute("vacuum analyze users")
    sample = await queries.sample_addresses(conn)
    assert len(sample) > 90

    tried = 0
    for filters in combinations():
        keyset = queries.SORTS[filters["sort"]]
        place = {
            "created_at": START + timedelta(minutes=ACCOUNTS // 2),
            "id": uuid.UUID(int=0),
            "email_folded": "user5@example.com",
        }
        for page in (None, [place[name] for name in keyset.columns]):
            plan = await explain(conn, queries.select_accounts(filters, sample, keyset, page, 51))
            assert "Seq Scan" not in set(nodes(plan)), (filters, page, plan)
            tried += 1
    assert tried == 2 * 4 * (2 * 2 ** len(VALUES) + 2 ** (len(VALUES) - 1))

    for sort, keyset in queries.SORTS.items():
        pages = []
        after: list[object] | None = None
        for number in range(1, 401):
            statement = queries.select_accounts({}, (), keyset, after, 200)
            if number in (1, 400):
                plan = await explain(conn, statement, "analyze, buffers,")
                pages.append(plan["Shared Hit Blocks"] + plan["Shared Read Blocks"])
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
            statement = queries.select_accounts(LIST_USERS.load(filters), (), keyset, None, 51)
            plan = await explain(conn, statement, "analyze, buffers,")
            blocks = plan["Shared Hit Blocks"] + plan["Shared Read Blocks"]
            assert blocks < 150, (filters, sort, plan)

    # As asyncpg's statements are planned from their sixth time on.
    await conn.execute("set plan_cache_mode = force_generic_plan")
    hour = {"created_after": START, "created_before": START + timedelta(hours=1)}
    for sort in ("email", "-email"):
        sql, *arguments = queries.select_accounts(hour, (), queries.SORTS[sort], None, 51)
        values = ", ".join(f"'{argument}'" for argument in arguments)
        name = sort.replace("-", "descending_")
        await conn.execute(f"prepare {name} as {sql}")
        plan = await explain(conn, (f"execute {name}({values})",), "analyze, buffers,")
        assert plan["Shared Hit Blocks"] + plan["Shared Read Blocks"] < 200, plan
        # A time that is over before it begins.
        over = {"created_after": START + timedelta(hours=1), "created_before": START}
        statement = queries.select_accounts(over, (), queries.SORTS[sort], None, 51)
        plan = await explain(conn, statement, "analyze, buffers,")
        assert plan["Shared Hit Blocks"] + plan["Shared Read Blocks"] == 0, plan


PEOPLE = """
insert into users (id, email, email_folded, name, created_at)
select gen_random_uuid(), address, address, '', $2::timestamptz + n * interval '1 minute'
from (
    select string_to_array('ada grace ivan ivana maria marie mario john johanna sam lena elena', ' '),
           string_to_array('novak ivanova smith smirnova jones hopper lovelace lopez brown', ' '),
           string_to_array('gmail.com gmail.com gmail.com outlook.com example.org', ' ')
) as words (first, last, domain), generate_series(0, $1 - 1) n, lateral (
    select format('%s.%s.%s@%s', first[n % 12 + 1], last[n / 7 % 9 + 1], to_hex(n), domain[n % 5 + 1])
) as addresses (address)
"""


async def test_a_search_asks_for_what_is_rare_and_for_nothing_that_is_not(conn: Any) -> None:
    """It reads less than it would with the whole text, and nothing makes it a walk through all."""
    await _set_codecs(conn)
    await conn.execute(PEOPLE, 30_000, START)
    await conn.execute("vacuum analyze users")
    sample = await queries.sample_addresses(conn)
    addresses = [
        row["email"]
        for row in await conn.fetch("select email from users where email ~ '[05]1[0-9]@'")
    ]
    blocks: dict[bool, int] = {True: 0, False: 0}
    for address in addresses[:40]:
        for q in (address, address.partition(".")[2], address.rpartition(".")[0]):
            for limit in (2, 51):
                for narrowed in (True, False):
                    statement = queries.select_accounts(
                        LIST_USERS.load({"q": q}),
                        sample if narrowed else (),
                        queries.SORTS["-created_at"],
                        None,
                        limit,
                    )
                    plan = await explain(conn, statement, "analyze, buffers,")
                    assert "Seq Scan" not in set(nodes(plan))
                    assert "Index Scan" not in set(nodes(plan)), (q, plan)
                    assert plan["Actual Rows"] == 1
                    blocks[narrowed] += plan["Shared Hit Blocks"] + plan["Shared Read Blocks"]
    assert blocks[True] < 0.6 * blocks[False], blocks
