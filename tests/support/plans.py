"""Query plans of PostgreSQL, and how much they read."""

import json
from collections.abc import Iterator
from typing import Any

from service.json_codec import plain


async def explain(conn: Any, statement: tuple[Any, ...], options: str = "") -> dict[str, Any]:
    sql, *arguments = statement
    document = await conn.fetchval(f"explain ({options} format json) {sql}", *arguments)
    plan: dict[str, Any] = plain(document)[0]["Plan"]
    return plan


async def explain_generic(conn: Any, statement: tuple[Any, ...]) -> dict[str, Any]:
    """Return the generic plan, which a prepared statement may get from its sixth execution."""
    sql, *arguments = statement
    quoted = "select string_agg(quote_nullable(one), ', ') from unnest($1::text[]) as one"
    texts = [
        json.dumps(one) if isinstance(one, dict) else None if one is None else str(one)
        for one in arguments
    ]
    values = await conn.fetchval(quoted, texts)
    await conn.execute("set plan_cache_mode = force_generic_plan")
    await conn.execute(f"prepare for_any as {sql}")
    plan = await explain(conn, (f"execute for_any({values})",), "analyze, buffers,")
    await conn.execute("deallocate for_any")
    await conn.execute("reset plan_cache_mode")
    return plan


async def explain_both(conn: Any, statement: tuple[Any, ...]) -> list[dict[str, Any]]:
    """Execute the statement with a custom and with a generic plan, and return both plans."""
    return [
        await explain(conn, statement, "analyze, buffers,"),
        await explain_generic(conn, statement),
    ]


async def count_generic_plans(conn: Any) -> int:
    """Return how often this connection executed statements with a generic plan."""
    count: int = await conn.fetchval(
        "select sum(generic_plans)::int from pg_prepared_statements where parameter_types <> '{}'"
    )
    return count


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for inner in plan.get("Plans", ()):
        yield from nodes(inner)


def blocks_of(plan: dict[str, Any]) -> int:
    read: int = plan["Shared Hit Blocks"] + plan["Shared Read Blocks"]
    return read


def rows_read(plan: dict[str, Any]) -> Iterator[int]:
    """Yield the number of rows that each scan of the plan read."""
    for node in nodes(plan):
        if node["Node Type"].endswith("Scan") and "Relation Name" in node:
            yield node["Actual Rows"] + node.get("Rows Removed by Filter", 0)


def node_types(plan: dict[str, Any]) -> set[str]:
    return {node["Node Type"] for node in nodes(plan)}
