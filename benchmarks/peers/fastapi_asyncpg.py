"""FastAPI + asyncpg + pydantic + PyJWT, as their tutorials write it."""

import json
import os
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

import asyncpg
import jwt
from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.security import OAuth2PasswordBearer
from pydantic import BaseModel

SECRET = os.environ["JWT_SECRET"]
COLUMNS = """
    id, email, email_verified_at is not null as email_verified, name, role, settings,
    created_at, updated_at
"""


class User(BaseModel):
    id: UUID
    email: str
    email_verified: bool
    name: str
    role: str
    settings: dict[str, Any]
    created_at: datetime
    updated_at: datetime


class Account(User):
    status: str
    suspended_until: datetime | None
    suspension_reason: str | None
    purge_at: datetime | None
    version: int


class Accounts(BaseModel):
    items: list[Account]


class Change(BaseModel):
    name: str


async def set_codecs(conn: asyncpg.Connection) -> None:
    await conn.set_type_codec("jsonb", encoder=json.dumps, decoder=json.loads, schema="pg_catalog")


@asynccontextmanager
async def lifespan(app: FastAPI):
    async with asyncpg.create_pool(os.environ["DATABASE_URL"], init=set_codecs) as pool:
        app.state.pool = pool
        yield


app = FastAPI(lifespan=lifespan)
Token = Annotated[str, Depends(OAuth2PasswordBearer(tokenUrl="token"))]


async def connection(request: Request):
    async with request.app.state.pool.acquire() as conn:
        yield conn


Connection = Annotated[asyncpg.Connection, Depends(connection)]


async def user_id(token: Token) -> str:
    try:
        return jwt.decode(token, SECRET, algorithms=["HS256"])["sub"]
    except jwt.InvalidTokenError:
        raise HTTPException(401) from None


UserId = Annotated[str, Depends(user_id)]


async def current_user(user_id: UserId, conn: Connection) -> asyncpg.Record:
    user = await conn.fetchrow(f"select {COLUMNS} from users where id = $1", user_id)
    if user is None:
        raise HTTPException(401)
    return user


CurrentUser = Annotated[asyncpg.Record, Depends(current_user)]


@app.get("/users/me", response_model=User)
async def read_me(user: CurrentUser):
    return dict(user)


@app.patch("/users/me", response_model=User)
async def change_me(change: Change, user_id: UserId, conn: Connection):
    user = await conn.fetchrow(
        "update users set name = $2, version = version + 1, updated_at = now() where id = $1"
        f" returning {COLUMNS}",
        user_id,
        change.name,
    )
    return dict(user)


@app.get("/users", response_model=Accounts)
async def list_users(user: CurrentUser, conn: Connection, role: str, limit: int = 50):
    if user["role"] != "admin":
        raise HTTPException(403)
    rows = await conn.fetch(
        f"select {COLUMNS}, status, suspended_until, suspension_reason, purge_at, version"
        " from users where role = $1 order by created_at desc, id desc limit $2",
        role,
        limit,
    )
    return {"items": [dict(row) for row in rows]}


@app.get("/health/live")
async def live():
    return {"status": "pass"}
