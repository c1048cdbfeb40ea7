"""aiohttp + asyncpg + PyJWT + marshmallow, as their tutorials write it; on uvloop, without logs."""

import json
import os

import asyncpg
import jwt
import uvloop
from aiohttp import web
from marshmallow import Schema, fields

SECRET = os.environ["JWT_SECRET"]
COLUMNS = """
    id, email, email_verified_at is not null as email_verified, name, role, settings,
    created_at, updated_at
"""
POOL = web.AppKey("pool", asyncpg.Pool)


class UserSchema(Schema):
    id = fields.UUID()
    email = fields.Email()
    email_verified = fields.Boolean()
    name = fields.String()
    role = fields.String()
    settings = fields.Dict()
    created_at = fields.DateTime()
    updated_at = fields.DateTime()


class AccountSchema(UserSchema):
    status = fields.String()
    suspended_until = fields.DateTime(allow_none=True)
    suspension_reason = fields.String(allow_none=True)
    purge_at = fields.DateTime(allow_none=True)
    version = fields.Integer()


class ChangeSchema(Schema):
    name = fields.String(required=True)


user_schema, accounts_schema, change_schema = UserSchema(), AccountSchema(many=True), ChangeSchema()


def user_id(request: web.Request) -> str:
    token = request.headers.get("Authorization", "").removeprefix("Bearer ")
    try:
        return jwt.decode(token, SECRET, algorithms=["HS256"])["sub"]
    except jwt.InvalidTokenError:
        raise web.HTTPUnauthorized from None


async def current_user(request: web.Request, conn: asyncpg.Connection) -> asyncpg.Record:
    user = await conn.fetchrow(f"select {COLUMNS} from users where id = $1", user_id(request))
    if user is None:
        raise web.HTTPUnauthorized
    return user


async def read_me(request: web.Request) -> web.Response:
    async with request.app[POOL].acquire() as conn:
        user = await current_user(request, conn)
    return web.json_response(user_schema.dump(user))


async def change_me(request: web.Request) -> web.Response:
    change = change_schema.load(await request.json())
    async with request.app[POOL].acquire() as conn:
        user = await conn.fetchrow(
            "update users set name = $2, version = version + 1, updated_at = now() where id = $1"
            f" returning {COLUMNS}",
            user_id(request),
            change["name"],
        )
    return web.json_response(user_schema.dump(user))


async def list_users(request: web.Request) -> web.Response:
    async with request.app[POOL].acquire() as conn:
        user = await current_user(request, conn)
        if user["role"] != "admin":
            raise web.HTTPForbidden
        rows = await conn.fetch(
            f"select {COLUMNS}, status, suspended_until, suspension_reason, purge_at, version"
            " from users where role = $1 order by created_at desc, id desc limit $2",
            request.query["role"],
            int(request.query["limit"]),
        )
    return web.json_response({"items": accounts_schema.dump(rows)})


async def live(request: web.Request) -> web.Response:
    return web.json_response({"status": "pass"})


async def set_codecs(conn: asyncpg.Connection) -> None:
    await conn.set_type_codec("jsonb", encoder=json.dumps, decoder=json.loads, schema="pg_catalog")


async def pool_context(app: web.Application):
    async with asyncpg.create_pool(os.environ["DATABASE_URL"], init=set_codecs) as pool:
        app[POOL] = pool
        yield


app = web.Application()
app.cleanup_ctx.append(pool_context)
app.router.add_get("/users/me", read_me)
app.router.add_patch("/users/me", change_me)
app.router.add_get("/users", list_users)
app.router.add_get("/health/live", live)
web.run_app(
    app,
    host="127.0.0.1",
    port=int(os.environ["PORT"]),
    access_log=None,
    print=None,
    loop=uvloop.new_event_loop(),
)
