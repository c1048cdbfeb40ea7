"""aiohttp answering a constant: the floor, what the framework alone costs."""

import os

import uvloop
from aiohttp import web

USER = (
    b'{"id":"01998a2e-5f00-7c3d-8e21-9b6f0a4d7c55","email":"user1@example.com",'
    b'"email_verified":true,"name":"Name 1","role":"user","settings":{"language":"en"},'
    b'"created_at":"2026-01-01T00:00:00Z","updated_at":"2026-01-01T00:00:00Z"}'
)


async def read_me(request: web.Request) -> web.Response:
    return web.Response(body=USER, content_type="application/json")


async def live(request: web.Request) -> web.Response:
    return web.Response(body=b'{"status":"pass"}', content_type="application/json")


app = web.Application()
app.router.add_get("/users/me", read_me)
app.router.add_get("/health/live", live)
web.run_app(
    app,
    host="127.0.0.1",
    port=int(os.environ["PORT"]),
    access_log=None,
    print=None,
    loop=uvloop.new_event_loop(),
)
