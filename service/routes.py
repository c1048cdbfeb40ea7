"""The route table: every URL, its handler, and who may call it."""

from aiohttp import web

from service.admin import handlers as administration
from service.audit import handlers as audit
from service.auth import handlers as auth
from service.auth.guards import admin, anyone, optionally_signed_in, signed_in, support
from service.context import SETTINGS
from service.docs import handlers as docs
from service.health import handlers as health
from service.http.conditional import revalidate
from service.http.descriptions import description_of, is_revalidated
from service.http.expectations import UnusualExpectations, leave_to_middleware
from service.http.fields import UUID_PATTERN
from service.http.idempotency import replay_first
from service.http.route import SERVED, Route, spellings
from service.openapi import handlers as openapi
from service.recovery import handlers as recovery
from service.recovery import verification
from service.sessions import handlers as sessions
from service.sessions import sign_in
from service.settings import Settings
from service.users import handlers as users
from service.users import registration

ROUTES = (
    # Operation
    Route("GET", "/", docs.home, anyone),
    Route("GET", "/health", health.ready, anyone),
    Route("GET", "/health/live", health.live, anyone),
    Route("GET", "/health/ready", health.ready, anyone),
    Route("GET", "/health/startup", health.startup, anyone),
    Route("GET", "/.well-known/jwks.json", auth.jwks, anyone),
    Route("GET", "/docs", docs.page, anyone),
    Route("GET", "/docs/page.js", docs.page_script, anyone),
    Route("GET", "/docs/page.css", docs.page_style, anyone),
    Route("GET", "/docs/swagger-ui.js", docs.swagger_ui_script, anyone),
    Route("GET", "/docs/swagger-ui.css", docs.swagger_ui_style, anyone),
    Route("GET", "/openapi.json", openapi.spec, anyone),
    # Sign-in
    Route("POST", "/api/v1/auth/register", registration.register, anyone),
    Route("POST", "/api/v1/auth/login", sign_in.login, anyone),
    Route("POST", "/api/v1/auth/refresh", sessions.refresh, anyone),
    Route("POST", "/api/v1/auth/logout", sessions.logout, optionally_signed_in),
    # Links in mails
    Route("POST", "/api/v1/auth/password/forgot", recovery.forgot_password, anyone),
    Route("POST", "/api/v1/auth/password/reset", recovery.reset_password, anyone),
    Route("POST", "/api/v1/auth/email/verify", verification.verify_email, optionally_signed_in),
    Route("POST", "/api/v1/auth/email/verify/resend", recovery.resend_verification, anyone),
    Route("POST", "/api/v1/auth/email/revert", recovery.revert_email, anyone),
    Route("POST", "/api/v1/auth/links/inspect", recovery.inspect_link, anyone),
    # The owner's own account
    Route("GET", "/api/v1/users/me", users.read_me, signed_in),
    Route("PUT", "/api/v1/users/me", users.replace_me, signed_in),
    Route("PATCH", "/api/v1/users/me", users.merge_me, signed_in),
    Route("DELETE", "/api/v1/users/me", users.delete_me, signed_in),
    Route("POST", "/api/v1/users/me/deletion", users.request_deletion, signed_in),
    Route("GET", "/api/v1/users/me/export", users.export_me, signed_in),
    Route("POST", "/api/v1/users/me/password", users.change_password, signed_in),
    Route("POST", "/api/v1/users/me/email", users.change_email, signed_in),
    Route("GET", "/api/v1/users/me/sessions", sessions.list_mine, signed_in),
    Route("DELETE", "/api/v1/users/me/sessions", sessions.end_others, signed_in),
    Route("DELETE", "/api/v1/users/me/sessions/{session_id}", sessions.end_one, signed_in),
    # Administration
    Route("GET", "/api/v1/users", administration.list_users, support),
    Route("POST", "/api/v1/users", administration.create_user, admin),
    Route("GET", "/api/v1/users/{user_id}", administration.read_user, support),
    Route("PATCH", "/api/v1/users/{user_id}", administration.change_user, admin),
    Route("DELETE", "/api/v1/users/{user_id}", administration.delete_user, admin),
    Route("POST", "/api/v1/users/{user_id}/suspend", administration.suspend_user, admin),
    Route("POST", "/api/v1/users/{user_id}/reinstate", administration.reinstate_user, admin),
    Route("POST", "/api/v1/users/{user_id}/password-reset", administration.reset_password, admin),
    Route("GET", "/api/v1/users/{user_id}/sessions", administration.list_sessions, support),
    Route("DELETE", "/api/v1/users/{user_id}/sessions", administration.end_sessions, admin),
    Route(
        "DELETE",
        "/api/v1/users/{user_id}/sessions/{session_id}",
        administration.end_session,
        admin,
    ),
    Route("GET", "/api/v1/audit-events", audit.list_events, admin),
)


def served(settings: Settings) -> tuple[Route, ...]:
    """Return all routes, without the pages if ``settings.docs`` is off."""
    return tuple(
        route for route in ROUTES if settings.docs or route.handler.__module__ != docs.__name__
    )


def add_routes(app: web.Application) -> None:
    """Register each route in both spellings; GET routes also serve HEAD.

    Path parameters that end in ``_id`` match only UUIDs, so ``me`` in ``/users/me`` is never an id.
    """
    app[SERVED] = served(app[SETTINGS])
    for route in app[SERVED]:
        handler = route.handler
        if description_of(handler).idempotent:
            handler = replay_first(handler)
        if is_revalidated(route):
            handler = revalidate(handler)
        handler = route.access(app, handler)
        pattern = route.path.replace("_id}", f"_id:{UUID_PATTERN}}}")
        for path in spellings(pattern):
            if route.method == "GET":
                app.router.add_get(path, handler, expect_handler=leave_to_middleware)
            else:
                app.router.add_route(
                    route.method, path, handler, expect_handler=leave_to_middleware
                )
    app.router.register_resource(UnusualExpectations())
