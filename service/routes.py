"""The route table: every URL, its handler, and who may call it."""

from aiohttp import web

from service.admin import handlers as administration
from service.audit import handlers as audit
from service.auth import handlers as auth
from service.auth.guards import (
    aal2,
    admin,
    admin_recently,
    anyone,
    enrolling,
    optionally_signed_in,
    recently,
    recently_enrolling,
    recently_or_by_password,
    signed_in,
    support,
)
from service.context import SETTINGS
from service.docs import handlers as docs
from service.factors.related_origins import related_origins
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
from service.sessions import passkey_sign_in, reauthentication, second_factor, sign_in
from service.settings import Settings
from service.users import factors, registration
from service.users import handlers as users
from service.worlds import beat_handlers as beats
from service.worlds import event_handlers as events
from service.worlds import handlers as worlds
from service.worlds import story_handlers as stories
from service.worlds import transfer_handlers as transfers
from service.worlds import view_handlers as views

ROUTES = (
    # Operation
    Route("GET", "/", docs.home, anyone),
    Route("GET", "/health", health.ready, anyone),
    Route("GET", "/health/live", health.live, anyone),
    Route("GET", "/health/ready", health.ready, anyone),
    Route("GET", "/health/startup", health.startup, anyone),
    Route("GET", "/.well-known/jwks.json", auth.jwks, anyone),
    Route("GET", "/.well-known/webauthn", related_origins, anyone),
    Route("GET", "/docs", docs.page, anyone),
    Route("GET", "/docs/page.js", docs.page_script, anyone),
    Route("GET", "/docs/session.js", docs.session_script, anyone),
    Route("GET", "/docs/factors.js", docs.factors_script, anyone),
    Route("GET", "/docs/page.css", docs.page_style, anyone),
    Route("GET", "/docs/swagger-ui.js", docs.swagger_ui_script, anyone),
    Route("GET", "/docs/swagger-ui.css", docs.swagger_ui_style, anyone),
    Route("GET", "/openapi.json", openapi.spec, anyone),
    # Sign-in
    Route("POST", "/api/v1/auth/register", registration.register, anyone),
    Route("POST", "/api/v1/auth/login", sign_in.login, anyone),
    Route("POST", "/api/v1/auth/second-factor", second_factor.use_second_factor, anyone),
    Route(
        "POST", "/api/v1/auth/second-factor/options", second_factor.second_factor_options, anyone
    ),
    Route("POST", "/api/v1/auth/passkey/options", passkey_sign_in.passkey_options, anyone),
    Route("POST", "/api/v1/auth/passkey", passkey_sign_in.use_passkey, anyone),
    Route("POST", "/api/v1/auth/reauthenticate", reauthentication.reauthenticate, enrolling),
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
    Route("DELETE", "/api/v1/users/me", users.delete_me, recently_or_by_password),
    Route("POST", "/api/v1/users/me/deletion", users.request_deletion, recently_or_by_password),
    Route("GET", "/api/v1/users/me/export", users.export_me, recently),
    Route("POST", "/api/v1/users/me/password", users.change_password, recently_or_by_password),
    Route("DELETE", "/api/v1/users/me/password", users.remove_password, aal2),
    Route("POST", "/api/v1/users/me/email", users.change_email, recently_or_by_password),
    Route("GET", "/api/v1/users/me/factors", factors.list_factors, enrolling),
    Route("POST", "/api/v1/users/me/factors/totp", factors.start_totp, recently_enrolling),
    Route(
        "POST",
        "/api/v1/users/me/factors/{factor_id}/confirm",
        factors.confirm_totp,
        recently_enrolling,
    ),
    Route("POST", "/api/v1/users/me/passkeys/options", factors.passkey_options, recently_enrolling),
    Route("POST", "/api/v1/users/me/passkeys", factors.add_passkey, recently_enrolling),
    Route("PATCH", "/api/v1/users/me/factors/{factor_id}", factors.rename_factor, signed_in),
    Route("DELETE", "/api/v1/users/me/factors/{factor_id}", factors.remove_factor, recently),
    Route("POST", "/api/v1/users/me/recovery-codes", factors.make_recovery_codes, aal2),
    Route("GET", "/api/v1/users/me/sessions", sessions.list_mine, signed_in),
    Route("DELETE", "/api/v1/users/me/sessions", sessions.end_others, signed_in),
    Route("DELETE", "/api/v1/users/me/sessions/{session_id}", sessions.end_one, signed_in),
    # Worlds
    Route("GET", "/api/v1/worlds", worlds.list_worlds, signed_in),
    Route("POST", "/api/v1/worlds", worlds.create_world, signed_in),
    Route("GET", "/api/v1/worlds/{world_id}", worlds.read_world, signed_in),
    Route("PUT", "/api/v1/worlds/{world_id}", worlds.change_world, signed_in),
    Route("DELETE", "/api/v1/worlds/{world_id}", worlds.delete_world, signed_in),
    Route("GET", "/api/v1/worlds/{world_id}/export", transfers.export_world, signed_in),
    Route("POST", "/api/v1/worlds/import", transfers.import_world, signed_in),
    Route("POST", "/api/v1/worlds/{world_id}/duplicate", transfers.duplicate_world, signed_in),
    Route("GET", "/api/v1/worlds/{world_id}/timeline", views.read_timeline, signed_in),
    Route("GET", "/api/v1/worlds/{world_id}/intersections", views.list_intersections, signed_in),
    Route("GET", "/api/v1/worlds/{world_id}/search", views.search_world, signed_in),
    Route(
        "GET",
        "/api/v1/worlds/{world_id}/events/dependency-graph",
        views.read_dependency_graph,
        signed_in,
    ),
    Route("GET", "/api/v1/worlds/{world_id}/events", events.list_events, signed_in),
    Route("POST", "/api/v1/worlds/{world_id}/events", events.create_event, signed_in),
    Route(
        "GET", "/api/v1/worlds/{world_id}/events/{event_id}", events.read_event_of_world, signed_in
    ),
    Route(
        "PUT",
        "/api/v1/worlds/{world_id}/events/{event_id}",
        events.change_event_of_world,
        signed_in,
    ),
    Route(
        "DELETE",
        "/api/v1/worlds/{world_id}/events/{event_id}",
        events.delete_event_of_world,
        signed_in,
    ),
    Route("GET", "/api/v1/events/{event_id}", events.read_event, signed_in),
    Route("PUT", "/api/v1/events/{event_id}", events.change_event, signed_in),
    Route("DELETE", "/api/v1/events/{event_id}", events.delete_event, signed_in),
    Route("GET", "/api/v1/events/{event_id}/beats", views.list_beats_of_event, signed_in),
    Route("POST", "/api/v1/events/{event_id}/dependencies/{cause_id}", events.add_cause, signed_in),
    Route(
        "DELETE",
        "/api/v1/events/{event_id}/dependencies/{cause_id}",
        events.remove_cause,
        signed_in,
    ),
    Route("GET", "/api/v1/worlds/{world_id}/stories", stories.list_stories, signed_in),
    Route("POST", "/api/v1/worlds/{world_id}/stories", stories.create_story, signed_in),
    Route(
        "GET",
        "/api/v1/worlds/{world_id}/stories/archived",
        stories.list_archived_stories,
        signed_in,
    ),
    Route("GET", "/api/v1/worlds/{world_id}/stories/tags", stories.list_tags, signed_in),
    Route("GET", "/api/v1/stories/{story_id}", stories.read_story, signed_in),
    Route("PUT", "/api/v1/stories/{story_id}", stories.change_story, signed_in),
    Route("DELETE", "/api/v1/stories/{story_id}", stories.delete_story, signed_in),
    Route("POST", "/api/v1/stories/{story_id}/clone", stories.clone_story, signed_in),
    Route("POST", "/api/v1/stories/{story_id}/restore", stories.restore_story, signed_in),
    Route("GET", "/api/v1/stories/{story_id}/statistics", stories.read_statistics, signed_in),
    Route("GET", "/api/v1/stories/{story_id}/beats", beats.list_beats, signed_in),
    Route("POST", "/api/v1/stories/{story_id}/beats", beats.create_beat, signed_in),
    Route("POST", "/api/v1/stories/{story_id}/beats/reorder", beats.reorder_beats, signed_in),
    Route("GET", "/api/v1/stories/{story_id}/beats/{beat_id}", beats.read_beat, signed_in),
    Route("PUT", "/api/v1/stories/{story_id}/beats/{beat_id}", beats.change_beat, signed_in),
    Route("DELETE", "/api/v1/stories/{story_id}/beats/{beat_id}", beats.delete_beat, signed_in),
    Route(
        "PATCH",
        "/api/v1/stories/{story_id}/beats/{beat_id}/reasoning",
        beats.change_reasoning,
        signed_in,
    ),
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
    Route("GET", "/api/v1/users/{user_id}/factors", administration.list_factors, support),
    Route(
        "DELETE", "/api/v1/users/{user_id}/factors", administration.remove_factors, admin_recently
    ),
    Route(
        "DELETE",
        "/api/v1/users/{user_id}/factors/{factor_id}",
        administration.remove_factor,
        admin_recently,
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
        description = description_of(handler)
        if description.idempotent and not description.streams_body:
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
