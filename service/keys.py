"""The typed keys under which the application and its requests carry their state."""

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

import asyncpg
from aiohttp import web

from service.settings import Settings

if TYPE_CHECKING:
    from service.auth.passwords import Hasher
    from service.auth.signing_keys import KeyRing
    from service.health import Health
    from service.mail.rendering import Templates
    from service.throttle import Count

SETTINGS = web.AppKey("settings", Settings)
# Called after each use of a connection: what for, seconds waited for it, seconds it was held.
DatabaseTimer: TypeAlias = Callable[[str, float, float], None]

POOL: web.AppKey["asyncpg.Pool[asyncpg.Record]"] = web.AppKey("pool")
DATABASE_TIMERS: web.AppKey[list[DatabaseTimer]] = web.AppKey("database_timers")
HASHER: web.AppKey["Hasher"] = web.AppKey("hasher")
KEY_RING: web.AppKey["KeyRing"] = web.AppKey("key_ring")
HEALTH: web.AppKey["Health"] = web.AppKey("health")
MAIL_TEMPLATES: web.AppKey["Templates"] = web.AppKey("mail_templates")

REQUEST_ID = web.RequestKey("request_id", str)
# The signed-in user's row and its session's id: see sessions.queries.find_signed_in.
USER: web.RequestKey["asyncpg.Record"] = web.RequestKey("user")
THROTTLE_COUNTS: web.RequestKey["list[Count]"] = web.RequestKey("throttle_counts")
