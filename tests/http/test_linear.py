"""What a stranger feeds to the event loop: twice the input takes at most about twice the steps."""

import base64
import contextlib
import gc
import io
import json
import sys
import time
from collections.abc import Awaitable, Callable
from ipaddress import ip_network
from types import FrameType
from typing import Any
from unittest.mock import Mock

import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request
from joserfc.jwk import ECKey
from marshmallow import ValidationError
from multidict import CIMultiDict

from service.accounts.preferences import (
    check_json,
    check_preferences,
    merge_patch,
    merge_preferences,
)
from service.admin.schemas import LIST_USERS
from service.admin.search import has_trigram
from service.audit.events import user_agent
from service.audit.queries import NEWEST_FIRST
from service.auth.blocklist import is_blocked
from service.auth.passwords import _resembles
from service.auth.signing_keys import KEY_RING, KeyRing
from service.auth.tokens import TOKEN_MAX_LENGTH, TOKEN_TYPE, verify_access_token
from service.context import SETTINGS
from service.docs.handlers import page_style
from service.http.client_ip import client_ip
from service.http.conditional import check_preconditions
from service.http.field_errors import escape_pointer
from service.http.fields import EmailAddress, NewPassword, fold_email
from service.http.idempotency import replay_first
from service.http.pages import open_cursor
from service.http.problems import Problem
from service.http.request_heads import can_meet_expectations, list_of
from service.http.requests import LONG_NUMBERS_MAX, load_json, read_query
from service.json_codec import encode, same
from service.mail.languages import choose_language
from service.settings import Settings
from service.users.schemas import MERGE_PROFILE, REGISTER
from service.worlds.beat_queries import count_words
from service.worlds.document import check_outline, read_events
from service.worlds.plan import make_plan
from service.worlds.schemas import CREATE_EVENT, REORDER_BEATS
from service.worlds.screen import Screen
from tests.support.worlds import NO_ONE

# Steps that twice the input may take, for each step that the input takes.
GROWTH_MAX = 2.4


def count_steps(work: Callable[[], object]) -> int:
    """Count the bytecode instructions and calls of ``work``; the same in every run."""
    steps = 0

    def on_event(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal steps
        frame.f_trace_opcodes = True
        steps += event == "opcode"
        return on_event

    def on_call(_: FrameType, event: str, __: Any) -> None:
        nonlocal steps
        steps += event in ("call", "c_call")

    traced, profiled = sys.gettrace(), sys.getprofile()
    # A collection would run callbacks and finalizers of other tests.
    gc.disable()
    sys.settrace(on_event)
    sys.setprofile(on_call)
    try:
        work()
    except (Problem, ValidationError, ValueError):
        pass
    finally:
        sys.settrace(traced)
        sys.setprofile(profiled)
        gc.enable()
    return steps


def query(text: str, schema: Any = LIST_USERS) -> object:
    return read_query(make_mocked_request("GET", f"/?{text}"), schema)


def if_match(text: str) -> None:
    check_preconditions(make_mocked_request("GET", "/", headers={"If-Match": text}), 1)


def request_with(name: str, *lines: str) -> web.Request:
    app = web.Application()
    app[SETTINGS] = Settings(
        trusted_proxies=(ip_network("0.0.0.0/0"),),
        trusted_proxy_header="Forwarded" if name == "Forwarded" else "X-Forwarded-For",
    )
    transport = Mock(**{"get_extra_info.return_value": ("10.0.0.1", 1)})
    headers = CIMultiDict((name, line) for line in lines)
    return make_mocked_request("GET", "/", headers=headers, app=app, transport=transport)


def large(name: str, element: str) -> web.Request:
    """Return a request with as many elements as the parsers accept."""
    return request_with(name, *[(element * (8000 // len(element)))[:-1]] * 100)


def run_at_once(work: Awaitable[object]) -> None:
    """Run a coroutine that never waits."""
    with contextlib.suppress(StopIteration):
        next(work.__await__())


async def never_called(_: web.Request) -> web.Response:
    raise AssertionError


def idempotency_key(text: str) -> None:
    run_at_once(replay_first(never_called)(request_with("Idempotency-Key", text)))


KEY = ECKey.generate_key("P-256", {"kid": "a"})


def verify(token: str) -> None:
    app = web.Application()
    app[SETTINGS] = Settings()
    app[KEY_RING] = KeyRing(keys={"a": KEY}, schedule=[(time.monotonic(), KEY)])
    run_at_once(verify_access_token(app, token))


def base64url(text: str) -> str:
    return base64.urlsafe_b64encode(text.encode()).rstrip(b"=").decode()


HEAD = base64url(json.dumps({"alg": "ES256", "typ": TOKEN_TYPE, "kid": "a"}))


# Each takes a size and returns what to run; the input is as long as the size, or in proportion.
FED: dict[str, tuple[int, Callable[[int], Callable[[], object]]]] = {
    "password, ligatures": (128, lambda n: lambda: is_blocked("\ufdfa" * (n // 18))),
    "password, one repeated": (128, lambda n: lambda: is_blocked("a" * n + "b")),
    "password, almost periodic": (128, lambda n: lambda: is_blocked("ab" * (n // 2) + "c")),
    "password, runs at both ends": (126, lambda n: lambda: is_blocked("zyx123" * (n // 6) + "é")),
    "password, runs": (128, lambda n: lambda: is_blocked("123zyxq" * (n // 7) + "k")),
    "password, words": (128, lambda n: lambda: is_blocked("password" * (n // 8) + "kq")),
    "password, casefold": (128, lambda n: lambda: is_blocked("\u0390" * n + "a")),
    "password, separators": (128, lambda n: lambda: is_blocked("-." * (n // 2))),
    "password, personal": (
        100,
        lambda n: lambda: _resembles("abc" * 80, ["".join(f" w{i:02}" for i in range(n // 4))]),
    ),
    "password field": (128, lambda n: lambda: NewPassword().deserialize("\u0390" * n)),
    "email, labels": (110, lambda n: lambda: EmailAddress().deserialize("a@" + "a." * (n // 2))),
    "email, IDN labels": (
        110,
        lambda n: lambda: EmailAddress().deserialize("a@" + "\u4e00\u4e8c." * (n // 3) + "com"),
    ),
    "email, one IDN label": (
        120,
        lambda n: (
            lambda: EmailAddress().deserialize(
                "a@" + "".join(map(chr, range(0x4E00, 0x4E00 + n))) + ".com"
            )
        ),
    ),
    "email, ligatures": (
        120,
        lambda n: lambda: EmailAddress().deserialize("a@" + "\ufdfa" * n + ".com"),
    ),
    "email, local part": (120, lambda n: lambda: EmailAddress().deserialize("é." * (n // 2))),
    "email, ats": (120, lambda n: lambda: EmailAddress().deserialize("@" * n)),
    "email, quotes": (120, lambda n: lambda: EmailAddress().deserialize('"' * n + "@a.com")),
    "email, folding": (120, lambda n: lambda: fold_email("\u0390" * n + "@a.example")),
    "search": (100, lambda n: lambda: has_trigram("ab" + " a" * (n // 2))),
    "JSON, floats": (700, lambda n: lambda: load_json(str([0.1] * n))),
    "JSON, inexact floats": (
        500,
        lambda n: lambda: load_json(f"[{','.join(['0.12345678901234567'] * n)}]"),
    ),
    "JSON, integers": (700, lambda n: lambda: load_json(str([1] * n))),
    "JSON, long numbers": (16_000, lambda n: lambda: load_json("[" + "9" * n + "]")),
    "JSON, brackets": (16_000, lambda n: lambda: load_json("[" * n)),
    "JSON, quotes": (16_000, lambda n: lambda: load_json('"' * n)),
    "JSON, backslashes": (16_000, lambda n: lambda: load_json('["' + "\\" * n + "," * 100)),
    "JSON, texts": (
        8_000,
        lambda n: lambda: load_json("[" + ",".join(['""'] * (n // 3)) + "]"),
    ),
    "JSON, names": (700, lambda n: lambda: load_json(json.dumps({str(i): 1 for i in range(n)}))),
    "JSON, objects": (600, lambda n: lambda: load_json(json.dumps([{}] * n))),
    "unknown fields": (
        500,
        lambda n: lambda: MERGE_PROFILE.load({str(i): 1 for i in range(n)}),
    ),
    "long unknown field": (16_000, lambda n: lambda: escape_pointer("x/" * n)),
    "name": (80, lambda n: lambda: REGISTER.load({"name": "\u4e00\u200d" * (n // 2)})),
    "settings, values": (500, lambda n: lambda: check_json({"x": [1, "é"] * n})),
    "settings, nested": (16, lambda n: lambda: check_json(nested(n))),
    "settings, faults": (500, lambda n: lambda: check_json({"x": ["\0"] * n})),
    "settings, size": (
        4000,
        lambda n: lambda: check_preferences({"x": "é" * n, "llm_base_url": "http://" + "[" * n}),
    ),
    "settings, merged": (
        500,
        lambda n: (
            lambda: merge_preferences(
                {str(i): {"a": i} for i in range(n)}, {str(i): {"a": None} for i in range(n)}
            )
        ),
    ),
    "settings, compared": (500, lambda n: lambda: same({"x": [1] * n}, {"x": [1] * n})),
    "response": (500, lambda n: lambda: encode([{"x": "\u2028" * 8}] * n)),
    "query, parameters": (
        800,
        lambda n: lambda: query("&".join(f"x{i}=1" for i in range(n // 4))),
    ),
    "query, separators": (2000, lambda n: lambda: query("&" * n)),
    "query, escapes": (2000, lambda n: lambda: query("q=" + "%41" * (n // 3))),
    "query, settings": (2000, lambda n: lambda: query("settings=" + "[" * n)),
    "query, cursor": (2000, lambda n: lambda: query("cursor=" + "A" * n)),
    "query, time": (2000, lambda n: lambda: query("created_after=" + "2" * n)),
    "query, digits of a time": (
        2000,
        lambda n: lambda: query("created_after=2026-01-31T12:00:00." + "2" * n),
    ),
    "query, page size": (2000, lambda n: lambda: query("limit=" + "1" * n)),
    "cursor": (
        2000,
        lambda n: lambda: open_cursor(("key",), "/", {"cursor": "A" * n}, NEWEST_FIRST),
    ),
    "access token, dots": (1000, lambda n: lambda: verify("." * n)),
    "access token, header": (
        1000,
        lambda n: lambda: verify(f"{base64url('[' * (n // 2))}.e30.AAAA"),
    ),
    "access token, claims": (
        700,
        lambda n: lambda: verify(f"{HEAD}.{base64url('[' * (n // 2))}.AAAA"),
    ),
    "access token, signature": (700, lambda n: lambda: verify(f"{HEAD}.e30.{'A' * n}")),
    "access token, too long": (
        TOKEN_MAX_LENGTH + 1,
        lambda n: lambda: verify(f"{HEAD}.e30.{'A' * n}"),
    ),
    "X-Forwarded-For, hops": (
        4000,
        lambda n: lambda: client_ip(request_with("X-Forwarded-For", "1.1.1.1," * (n // 8) + "1")),
    ),
    "X-Forwarded-For, one hop": (
        4000,
        lambda n: lambda: client_ip(request_with("X-Forwarded-For", "1" * n)),
    ),
    "Forwarded, hops": (
        4000,
        lambda n: (
            lambda: client_ip(request_with("Forwarded", "for=1.1.1.1," * (n // 12) + "for=1"))
        ),
    ),
    "Forwarded, one hop": (
        4000,
        lambda n: lambda: client_ip(request_with("Forwarded", "a=1;" * (n // 4))),
    ),
    "User-Agent": (4000, lambda n: lambda: user_agent(request_with("User-Agent", "é" * n))),
    "Idempotency-Key": (4000, lambda n: lambda: idempotency_key("a" * (n - 1) + " ")),
    "Accept-Language, ranges": (4000, lambda n: lambda: choose_language("a," * (n // 2), {"en"})),
    "Accept-Language, one range": (
        400,
        lambda n: lambda: choose_language("a" + "-a" * (n // 2), {"en"}),
    ),
    "merge patch, nested": (16, lambda n: lambda: merge_patch(nested(n), nested(n))),
    "merge patch, members": (
        500,
        lambda n: (
            lambda: merge_patch({str(i): {} for i in range(n)}, dict.fromkeys(map(str, range(n))))
        ),
    ),
    "tags": (1000, lambda n: lambda: CREATE_EVENT.load({"tags": ["x"] * n})),
    "beat ids": (500, lambda n: lambda: REORDER_BEATS.load({"beat_ids": [NO_ONE] * n})),
    "words": (4000, lambda n: lambda: count_words("é " * (n // 2))),
    "causes": (
        200,
        lambda n: lambda: make_plan(io.BytesIO(chain(n)), Settings()),
    ),
    "document, escapes": (6000, lambda n: lambda: Screen().find_fault(b"\\u0430" * (n // 6))),
    "document, quotes": (4000, lambda n: lambda: Screen().find_fault(b'"' * n)),
    "document, brackets": (
        4000,
        lambda n: lambda: check_outline(io.BytesIO(b'{"world":' + b"[" * n)),
    ),
    "document, rows": (
        300,
        lambda n: lambda: list(read_events(io.BytesIO(b'{"world_events":[' + b"{}," * n))),
    ),
    "settings, compared nested": (16, lambda n: lambda: same(nested(n), nested(n))),
    "If-Match, quotes": (4000, lambda n: lambda: if_match('W/"' * n)),
    "If-Match, ETags": (4000, lambda n: lambda: if_match('"1", ' * n)),
    "If-Match, spaces": (4000, lambda n: lambda: if_match('"1"' + " \t," * n + "x")),
}


def chain(length: int) -> bytes:
    """Return a document whose events each cause the next one."""
    row = {"t": 1, "type": "minor", "summary": "A bell."}
    ids = [f"{NO_ONE[:-6]}{number:06}" for number in range(length)]
    events = [
        {**row, "id": each, "caused_by_ids": ids[max(0, number - 1) : number]}
        for number, each in enumerate(ids)
    ]
    world = {"version": "1.0", "world": {"name": "Orrery"}, "world_events": events}
    return json.dumps(world).encode()


def nested(depth: int) -> dict[str, Any]:
    return {"x": nested(depth - 1)} if depth else {}


@pytest.mark.parametrize("name", FED)
def test_twice_the_input_takes_at_most_about_twice_the_steps(name: str) -> None:
    size, prepare = FED[name]
    for warmed in (size, 2 * size):
        count_steps(prepare(warmed))
    once, twice = count_steps(prepare(size)), count_steps(prepare(2 * size))
    assert twice <= GROWTH_MAX * once + 200, (once, twice)


# A millisecond of CPython is up to a hundred thousand instructions.
LARGEST: dict[str, Callable[[], object]] = {
    "password, runs": lambda: is_blocked("zyx123" * 42 + "é"),
    "password, casefold": lambda: is_blocked("\u0390" * 255 + "a"),
    "email, one IDN label": lambda: EmailAddress().deserialize(
        "a@" + "".join(map(chr, range(0x4E00, 0x4E00 + 240))) + ".com"
    ),
    "JSON, names": lambda: load_json(json.dumps({str(i): 1 for i in range(1999)})),
    "JSON, inexact floats": lambda: load_json(
        "[" + ",".join(["0.12345678901234567"] * LONG_NUMBERS_MAX) + "]"
    ),
    "JSON, too many inexact floats": lambda: load_json(
        "[" + ",".join(["0.12345678901234567"] * 1999) + "]"
    ),
    "Accept-Language": lambda: choose_language(("a" + "-a" * 4000 + ",") * 8, {"en"}),
    "settings, values": lambda: check_json({"x": [1] * 1998}),
    "Accept-Encoding": lambda: run_at_once(page_style(large("Accept-Encoding", ","))),
    "Content-Encoding": lambda: list_of(large("Content-Encoding", ","), "Content-Encoding"),
    "Expect": lambda: can_meet_expectations(large("Expect", ",")),
    "X-Forwarded-For": lambda: client_ip(large("X-Forwarded-For", "10.0.0.1,")),
    "Forwarded": lambda: client_ip(large("Forwarded", "for=10.0.0.1,")),
}


@pytest.mark.parametrize("name", LARGEST)
def test_largest_input_takes_few_steps(name: str) -> None:
    count_steps(LARGEST[name])
    assert count_steps(LARGEST[name]) < 100_000
