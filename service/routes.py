"""Every URL, the handler that answers it, and who may call it. What is public is seen here."""

from collections.abc import Callable
from typing import NamedTuple

from aiohttp import web
from aiohttp.typedefs import Handler

from service import docs, health
from service.auth import handlers as auth
from service.auth.handlers import anyone, signed_in
from service.recovery import handlers as recovery
from service.sessions import handlers as sessions
from service.users import handlers as users


class Route(NamedTuple):
    method: str
    path: str
    handler: Handler
    access: Callable[[Handler], Handler]


ROUTES = (
    # Operation
    Route("GET", "/health", health.ready, anyone),
    Route("GET", "/health/live", health.live, anyone),
    Route("GET", "/health/ready", health.ready, anyone),
    Route("GET", "/health/startup", health.startup, anyone),
    Route("GET", "/.well-known/jwks.json", auth.jwks, anyone),
    Route("GET", "/docs", docs.page, anyone),
    # Sign-in
    Route("POST", "/api/v1/auth/register", auth.register, anyone),
    Route("POST", "/api/v1/auth/login", auth.login, anyone),
    Route("POST", "/api/v1/auth/refresh", sessions.refresh, anyone),
    Route("POST", "/api/v1/auth/logout", sessions.logout, signed_in),
    # Links in mails
    Route("POST", "/api/v1/auth/password/forgot", recovery.forgot_password, anyone),
    Route("POST", "/api/v1/auth/password/reset", recovery.reset_password, anyone),
    Route("POST", "/api/v1/auth/email/verify", recovery.verify_email, anyone),
    Route("POST", "/api/v1/auth/email/verify/resend", recovery.resend_verification, anyone),
    # The owner's own account
    Route("GET", "/api/v1/users/me", users.read_me, signed_in),
    Route("PUT", "/api/v1/users/me", users.replace_me, signed_in),
    Route("PATCH", "/api/v1/users/me", users.merge_me, signed_in),
    Route("DELETE", "/api/v1/users/me", users.delete_me, signed_in),
    Route("GET", "/api/v1/users/me/export", users.export_me, signed_in),
    Route("POST", "/api/v1/users/me/password", users.change_password, signed_in),
    Route("POST", "/api/v1/users/me/email", users.change_email, signed_in),
    Route("GET", "/api/v1/users/me/sessions", sessions.list_mine, signed_in),
    Route("DELETE", "/api/v1/users/me/sessions", sessions.end_others, signed_in),
    Route("DELETE", "/api/v1/users/me/sessions/{session_id}", sessions.end_one, signed_in),
)


def add_routes(app: web.Application) -> None:
    """Register each route with and without a trailing slash; a GET answers HEAD too."""
    for route in ROUTES:
        handler = route.access(route.handler)
        for path in (route.path, f"{route.path}/"):
            if route.method == "GET":
                app.router.add_get(path, handler)
            else:
                app.router.add_route(route.method, path, handler)
