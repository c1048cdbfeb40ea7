"""Litestar + asyncpg + msgspec, with its own JWT security, as its documentation writes it."""

import os
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any
from uuid import UUID

import asyncpg
import msgspec
from litestar import Litestar, Request, get, patch
from litestar.connection import ASGIConnection
from litestar.security.jwt import JWTAuth, Token

COLUMNS = """
    id, email, email_verified_at is not null as email_verified, name, role, settings,
    created_at, updated_at
"""


class User(msgspec.Struct):
    id: UUID
    email: str
    email_verified: bool
    name: str
    role: str
    settings: dict[str, Any]
    created_at: datetime
    updated_at: datetime


class Change(msgspec.Struct):
    name: str


async def find_user(token: Token, connection: ASGIConnection) -> User | None:
    async with connection.app.state.pool.acquire() as conn:
        row = await conn.fetchrow(f"select {COLUMNS} from users where id = $1", token.sub)
    return User(**row) if row else None


@get("/users/me")
async def read_me(request: Request[User, Token, Any]) -> User:
    return request.user


@patch("/users/me")
async def change_me(data: Change, request: Request[User, Token, Any]) -> User:
    async with request.app.state.pool.acquire() as conn:
        row = await conn.fetchrow(
            "update users set name = $2, version = version + 1, updated_at = now() where id = $1"
            f" returning {COLUMNS}",
            request.user.id,
            data.name,
        )
    return User(**row)


@get("/health/live")
async def live() -> dict[str, str]:
    return {"status": "pass"}


async def set_codecs(conn: asyncpg.Connection) -> None:
    await conn.set_type_codec(
        "jsonb",
        encoder=lambda value: msgspec.json.encode(value).decode(),
        decoder=msgspec.json.decode,
        schema="pg_catalog",
    )


@asynccontextmanager
async def lifespan(app: Litestar):
    async with asyncpg.create_pool(os.environ["DATABASE_URL"], init=set_codecs) as pool:
        app.state.pool = pool
        yield


jwt_auth = JWTAuth[User](
    retrieve_user_handler=find_user,
    token_secret=os.environ["JWT_SECRET"],
    exclude=["/health/live"],
)
app = Litestar([read_me, change_me, live], lifespan=[lifespan], on_app_init=[jwt_auth.on_app_init])
