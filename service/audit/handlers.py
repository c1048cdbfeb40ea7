"""The endpoint that lists audit events."""

from aiohttp import web

from service.audit import queries, schemas
from service.db.replica import read_replica
from service.http.descriptions import Success, describe
from service.http.pages import page_example, read_cursor, render_page
from service.http.requests import read_query


@describe(
    {
        200: Success(
            "A page of audit events.",
            schemas.AUDIT_EVENT_PAGE,
            ("Link",),
            page_example(schemas.AUDIT_EVENT_EXAMPLE),
        )
    },
    query=schemas.LIST_EVENTS,
)
async def list_events(request: web.Request) -> web.Response:
    """List audit events, filtered and newest first, one page at a time."""
    query = read_query(request, schemas.LIST_EVENTS)
    keyset = queries.NEWEST_FIRST
    after = read_cursor(request, query, keyset)
    rows = await read_replica(request.app, queries.list_events, query, after, query["limit"] + 1)
    return render_page(request, query, keyset, rows, schemas.AUDIT_EVENT)
