"""Throttling: limits apply, recover, are shared, and leave the owner a way in."""

import asyncio
import contextlib
import dataclasses
import re
from datetime import timedelta
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientResponse, ClientSession, UnixConnector, web

from service.app import create_app
from service.auth.passwords import HASHER
from service.http.connections import CONNECTIONS, ClientConnection
from service.settings import Rate, Settings
from tests.support.clients import WITH_JOBS, Client, StartApp
from tests.support.factories import PASSWORD, assert_problem
from tests.support.locks import WAITING
from tests.support.waiting import eventually

LOGIN = "/api/v1/auth/login"
REGISTER = "/api/v1/auth/register"
HOME = "192.0.2.1"
# Refills too slowly for a test to notice.
FEW = Rate(3, 3600)


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """Settings behind a trusted proxy, so that tests choose each client's IP."""
    return dataclasses.replace(settings, trusted_proxies=(ip_network("127.0.0.0/8"),))


async def sign_in(
    client: Client, email: str, source: str, password: str = "a wrong password"
) -> ClientResponse:
    return await client.post(
        LOGIN, json={"email": email, "password": password}, headers={"X-Forwarded-For": source}
    )


async def sign_up(client: Client, email: str, source: str = HOME) -> ClientResponse:
    return await client.post(
        REGISTER, json={"email": email, "password": PASSWORD}, headers={"X-Forwarded-For": source}
    )


def strangers(count: int) -> list[str]:
    return [f"198.51.100.{number}" for number in range(1, count + 1)]


def rate_limit_of(response: ClientResponse) -> tuple[str, int, int]:
    """Return the limit's name, the remaining attempts and the seconds until it refills."""
    policy = re.fullmatch(
        r'"([a-z-]+)";q=([0-9]+);w=([0-9]+)', response.headers["RateLimit-Policy"]
    )
    limit = re.fullmatch(r'"([a-z-]+)";r=([0-9]+);t=([0-9]+)', response.headers["RateLimit"])
    assert policy is not None
    assert limit is not None
    assert policy[1] == limit[1]
    assert 0 <= int(limit[2]) <= int(policy[2])
    assert 1 <= int(limit[3]) <= int(policy[3])
    return limit[1], int(limit[2]), int(limit[3])


async def assert_limited(response: ClientResponse) -> dict[str, Any]:
    problem = await assert_problem(response, 429, "too_many_requests")
    _, remaining, wait_s = rate_limit_of(response)
    assert remaining == 0
    assert response.headers["Retry-After"] == str(wait_s)
    return problem


async def pass_time(conn: Any, seconds: float) -> None:
    await conn.execute(
        "update throttles set arrival_at = arrival_at - $1::interval", timedelta(seconds=seconds)
    )


@pytest.mark.asvs("6.3.1")
async def test_limit_applies_and_recovers(start_app: StartApp, conn: Any) -> None:
    client = await start_app(throttle_sign_in_per_account=FEW)
    for source, left in zip(strangers(3), (2, 1, 0), strict=True):
        response = await sign_in(client, "ada@example.com", source)
        await assert_problem(response, 401, "invalid_credentials")
        assert rate_limit_of(response)[:2] == ("sign-in-per-account", left)
    await assert_limited(await sign_in(client, "ada@example.com", HOME))
    await pass_time(conn, 1200)
    assert (await sign_in(client, "ada@example.com", HOME)).status == 401, (
        "one attempt per third of the window"
    )
    await assert_limited(await sign_in(client, "ada@example.com", HOME))
    await pass_time(conn, 7200)
    for source in strangers(3):
        assert (await sign_in(client, "ada@example.com", source)).status == 401
    await assert_limited(await sign_in(client, "ada@example.com", HOME))


async def test_refused_attempts_do_not_extend_the_limit(start_app: StartApp, conn: Any) -> None:
    client = await start_app(throttle_sign_in_per_account=FEW)
    for _ in range(4):
        response = await sign_in(client, "ada@example.com", HOME)
    await assert_limited(response)
    latest = "select max(arrival_at) from throttles"
    before = await conn.fetchval(latest)
    for _ in range(5):
        await assert_limited(await sign_in(client, "ada@example.com", HOME))
    assert await conn.fetchval(latest) == before


@pytest.mark.asvs("6.3.1")
async def test_no_password_is_hashed_beyond_the_limit(start_app: StartApp) -> None:
    client = await start_app(throttle_sign_in_per_account=FEW)
    await sign_up(client, "ada@example.com")
    for source in strangers(3):
        await sign_in(client, "ada@example.com", source)
    assert client.app is not None
    hashed: list[float] = []
    client.app[HASHER].timers.append(lambda waited_s, took_s: hashed.append(took_s))
    await assert_limited(await sign_in(client, "ada@example.com", strangers(4)[3], PASSWORD))
    assert hashed == []
    assert (await sign_in(client, "other@example.com", HOME)).status == 401
    assert len(hashed) == 1


@pytest.mark.asvs("6.3.1")
async def test_replicas_share_limits(start_app: StartApp) -> None:
    replicas = [await start_app(throttle_sign_in_per_account=FEW) for _ in range(2)]
    for number, source in enumerate(strangers(3)):
        response = await sign_in(replicas[number % 2], "ada@example.com", source)
        assert response.status == 401
    for replica in replicas:
        await assert_limited(await sign_in(replica, "ADA@example.com", HOME))


async def test_limit_of_an_account_follows_what_counts_as_its_email(start_app: StartApp) -> None:
    client = await start_app(throttle_sign_in_per_account=FEW)
    for spelling in ("ada@straße.example", "ADA@xn--strae-oqa.example", "ada@STRAẞE.example"):
        assert (await sign_in(client, spelling, HOME)).status == 401
    await assert_limited(await sign_in(client, "ada@straße.example", HOME))
    assert (await sign_in(client, "ada@strasse.example", HOME)).status == 401


async def test_burst_lets_exactly_the_limit_through(start_app: StartApp) -> None:
    client = await start_app(throttle_sign_in_per_account=Rate(7, 3600))
    responses = await asyncio.gather(
        *(sign_in(client, "ada@example.com", source) for source in strangers(50))
    )
    assert sorted(response.status for response in responses) == [401] * 7 + [429] * 43
    for response in responses:
        assert 0 <= rate_limit_of(response)[1] < 7


async def test_attempts_that_waited_behind_a_later_one_still_pass(
    start_app: StartApp, conn: Any
) -> None:
    """They started before the row's arrival time, and still get the full quota."""
    client = await start_app(throttle_sign_in_per_account=FEW)
    await sign_in(client, "ada@example.com", HOME)
    async with conn.transaction():
        await conn.execute("select from throttles for update")
        waiting = asyncio.gather(
            *(sign_in(client, "ada@example.com", source) for source in strangers(3))
        )

        async def all_wait() -> bool:
            return bool(await conn.fetchval(WAITING) >= 3)

        await eventually(all_wait)
        await conn.execute("update throttles set arrival_at = clock_timestamp()")
    assert [response.status for response in await waiting] == [401, 401, 401]
    await assert_limited(await sign_in(client, "ada@example.com", HOME))


@pytest.mark.asvs("6.3.1")
async def test_client_is_limited_across_accounts(start_app: StartApp) -> None:
    client = await start_app(throttle_sign_in_per_ip=FEW)
    for number in range(3):
        assert (await sign_in(client, f"user{number}@example.com", HOME)).status == 401
    response = await sign_in(client, "another@example.com", HOME)
    await assert_limited(response)
    assert rate_limit_of(response)[0] == "sign-in-per-ip"
    assert (await sign_in(client, "another@example.com", strangers(1)[0])).status == 401


async def test_attempts_refused_per_client_do_not_count_against_the_account(
    start_app: StartApp,
) -> None:
    client = await start_app(
        throttle_sign_in_per_ip=FEW, throttle_sign_in_per_account=Rate(4, 3600)
    )
    for _ in range(9):
        response = await sign_in(client, "ada@example.com", HOME)
    await assert_limited(response)
    assert (await sign_in(client, "ada@example.com", strangers(1)[0])).status == 401


async def test_ipv6_clients_share_a_limit_per_64_bit_network(start_app: StartApp) -> None:
    client = await start_app(throttle_sign_in_per_ip=FEW)
    for source in ("2001:db8::1", "2001:db8::2:0:0:1", "2001:db8::ffff"):
        assert (await sign_in(client, "ada@example.com", source)).status == 401
    await assert_limited(await sign_in(client, "ada@example.com", "2001:db8::4"))
    assert (await sign_in(client, "ada@example.com", "2001:db8:0:1::1")).status == 401


@pytest.mark.parametrize("trusted", [(), (ip_network("127.0.0.0/8"),)], ids=["peer", "proxy"])
async def test_forged_forwarded_header_does_not_evade_the_limit(
    start_app: StartApp, trusted: Any
) -> None:
    client = await start_app(throttle_sign_in_per_ip=FEW, trusted_proxies=trusted)
    for number in range(4):
        response = await sign_in(client, "ada@example.com", f"6.6.6.{number}, {HOME}")
    await assert_limited(response)


@pytest.mark.asvs("6.3.1")
async def test_owner_under_attack_can_sign_in_from_known_networks(
    start_app: StartApp,
) -> None:
    client = await start_app(throttle_sign_in_per_account=FEW, throttle_sign_in_per_ip=FEW)
    assert (await sign_up(client, "ada@example.com")).status == 201
    cafe, *attackers = strangers(9)
    assert (await sign_in(client, "ada@example.com", cafe, PASSWORD)).status == 200
    responses = [await sign_in(client, "ada@example.com", source) for source in attackers]
    assert [response.status for response in responses] == [401] * 3 + [429] * 5
    for source in (HOME, cafe):
        for _ in range(5):
            assert (await sign_in(client, "ada@example.com", source, PASSWORD)).status == 200
    await assert_limited(await sign_in(client, "ada@example.com", "203.0.113.1", PASSWORD))


async def test_each_known_network_counts_for_itself(start_app: StartApp) -> None:
    client = await start_app(throttle_sign_in_per_account=FEW)
    assert (await sign_up(client, "ada@example.com")).status == 201
    (cafe,) = strangers(1)
    assert (await sign_in(client, "ada@example.com", cafe, PASSWORD)).status == 200
    for _ in range(4):
        response = await sign_in(client, "ada@example.com", HOME)
    await assert_limited(response)
    assert (await sign_in(client, "ada@example.com", cafe, PASSWORD)).status == 200


async def test_client_is_limited_across_accounts_known_in_its_network(
    start_app: StartApp,
) -> None:
    client = await start_app(throttle_sign_in_per_ip=FEW)
    emails = [f"user{number}@example.com" for number in range(4)]
    for email in emails:
        assert (await sign_up(client, email)).status == 201
    for email in emails[:3]:
        assert (await sign_in(client, email, HOME)).status == 401
    response = await sign_in(client, emails[3], HOME)
    await assert_limited(response)
    assert rate_limit_of(response)[0] == "sign-in-per-ip"


async def test_neighbour_in_a_known_network_can_block_it_but_no_other(
    start_app: StartApp,
) -> None:
    """The price of a limit per client that always counts."""
    client = await start_app(throttle_sign_in_per_ip=FEW)
    assert (await sign_up(client, "ada@example.com")).status == 201
    for number in range(3):
        await sign_in(client, f"user{number}@example.com", HOME)
    await assert_limited(await sign_in(client, "ada@example.com", HOME, PASSWORD))
    assert (await sign_in(client, "ada@example.com", strangers(1)[0], PASSWORD)).status == 200


async def test_guesses_do_not_tell_which_accounts_are_known_in_the_network(
    start_app: StartApp, conn: Any
) -> None:
    client = await start_app(
        throttle_sign_in_per_account=Rate(5, 3600), throttle_sign_in_per_ip=Rate(9, 3600)
    )
    assert (await sign_up(client, "known@example.com", HOME)).status == 201
    assert (await sign_up(client, "elsewhere@example.com", strangers(1)[0])).status == 201
    seen = []
    for email in ("known@example.com", "elsewhere@example.com", "nobody@example.com"):
        responses = [await sign_in(client, email, HOME) for _ in range(12)]
        seen.append([(response.status, rate_limit_of(response)[:2]) for response in responses])
        await conn.execute("delete from throttles")
    assert seen[0] == seen[1] == seen[2]


async def test_right_passwords_of_one_client_are_limited(start_app: StartApp) -> None:
    client = await start_app(throttle_all_sign_ins_per_ip=FEW)
    emails = [f"user{number}@example.com" for number in range(4)]
    for email in emails:
        assert (await sign_up(client, email)).status == 201
    for email in emails[:3]:
        assert (await sign_in(client, email, HOME, PASSWORD)).status == 200
    response = await sign_in(client, emails[3], HOME, PASSWORD)
    await assert_limited(response)
    assert rate_limit_of(response)[0] == "all-sign-ins-per-ip"
    assert (await sign_in(client, emails[3], strangers(1)[0], PASSWORD)).status == 200


async def test_known_and_unknown_accounts_are_limited_alike(start_app: StartApp) -> None:
    client = await start_app(throttle_sign_in_per_account=FEW)
    assert (await sign_up(client, "ada@example.com")).status == 201
    seen = []
    for email in ("ada@example.com", "nobody@example.com"):
        responses = [await sign_in(client, email, source) for source in strangers(5)]
        problem = await assert_limited(responses[-1])
        seen.append(
            (problem, [(response.status, rate_limit_of(response)[:2]) for response in responses])
        )
    assert seen[0] == seen[1]


async def test_success_is_refunded(start_app: StartApp, conn: Any) -> None:
    client = await start_app(throttle_sign_in_per_account=FEW, throttle_sign_in_per_ip=FEW)
    assert (await sign_up(client, "ada@example.com")).status == 201
    source = strangers(1)[0]
    for _ in range(2):
        assert (await sign_in(client, "ada@example.com", source)).status == 401
    response = await sign_in(client, "ada@example.com", source, PASSWORD)
    assert response.status == 200
    assert rate_limit_of(response)[1] == 1, "earlier failures still count"
    await conn.execute("delete from known_networks; delete from throttles")
    for _ in range(8):
        response = await sign_in(client, "ada@example.com", source, PASSWORD)
        assert response.status == 200
        assert rate_limit_of(response)[1] == 3


async def test_registrations_are_limited_per_client(start_app: StartApp) -> None:
    client = await start_app(throttle_registration_per_ip=FEW)
    statuses = [(await sign_up(client, f"user{i}@example.com")).status for i in (1, 2, 2)]
    assert statuses == [201, 201, 409], "checking whether an email is taken counts"
    response = await sign_up(client, "user3@example.com")
    await assert_limited(response)
    assert rate_limit_of(response)[0] == "registration-per-ip"
    assert (await sign_up(client, "user3@example.com", strangers(1)[0])).status == 201


@pytest.mark.parametrize(
    ("path", "action"),
    [("password/forgot", "password-reset"), ("email/verify/resend", "verification")],
)
async def test_mail_is_limited_per_account_and_per_client(
    start_app: StartApp, path: str, action: str
) -> None:
    client = await start_app(throttle_mail_per_account=FEW, throttle_mail_per_ip=Rate(5, 3600))
    responses = [
        await client.post(
            f"/api/v1/auth/{path}", json={"email": email}, headers={"X-Forwarded-For": HOME}
        )
        for email in ["ada@example.com"] * 4 + ["eve@example.com"] * 2
    ]
    assert [response.status for response in responses] == [202, 202, 202, 429, 202, 429]
    names = [rate_limit_of(response)[0] for response in responses]
    assert names[3] == f"{action}-per-account"
    assert names[5] == f"{action}-per-ip"


async def test_unix_socket_is_limited_per_account_only(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The path of a UNIX socket may have 103 bytes on some systems.
    monkeypatch.chdir(tmp_path)
    few = dataclasses.replace(
        settings, throttle_sign_in_per_account=FEW, throttle_sign_in_per_ip=Rate(1, 3600)
    )
    runner = web.AppRunner(create_app(few))
    await runner.setup()
    server = runner.server
    assert server is not None
    loop = asyncio.get_running_loop()
    accepting = await loop.create_unix_server(
        lambda: ClientConnection(runner.app[CONNECTIONS], server, loop), "socket"
    )
    statuses = []
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(runner.cleanup)
        stack.callback(accepting.close)
        connector = UnixConnector("socket")
        session = await stack.enter_async_context(ClientSession(connector=connector))
        registered = {"email": "ada@example.com", "password": PASSWORD}
        async with session.post(f"http://shinkei{REGISTER}", json=registered) as response:
            assert response.status == 201
            assert "RateLimit" not in response.headers
        for password in [PASSWORD] + ["a wrong password"] * 4:
            body = {"email": "ada@example.com", "password": password}
            async with session.post(f"http://shinkei{LOGIN}", json=body) as response:
                statuses.append(response.status)
    assert statuses == [200, 401, 401, 401, 429]


async def test_limits_can_be_disabled(start_app: StartApp, conn: Any) -> None:
    client = await start_app(
        throttle=False, throttle_sign_in_per_account=FEW, throttle_registration_per_ip=FEW
    )
    for number in range(5):
        assert (await sign_up(client, f"user{number}@example.com")).status == 201
        response = await sign_in(client, "ada@example.com", HOME)
        assert response.status == 401
        assert "RateLimit" not in response.headers
    assert await conn.fetchval("select count(*) from throttles") == 0


async def test_locked_throttle_table_is_a_503(start_app: StartApp, conn: Any) -> None:
    client = await start_app(db_lock_timeout_s=0.2)
    async with conn.transaction():
        await conn.execute("lock table throttles in access exclusive mode")
        response = await sign_in(client, "ada@example.com", HOME)
        await assert_problem(response, 503, "database_unavailable")
        assert "RateLimit" not in response.headers
    assert (await sign_in(client, "ada@example.com", HOME)).status == 401


async def test_throttle_table_stores_no_readable_data(client: Client, conn: Any) -> None:
    assert (await sign_up(client, "ada@example.com")).status == 201
    for source in (HOME, "2001:db8::1"):
        await sign_in(client, "ada@example.com", source)
    rows = await conn.fetch("select key from throttles")
    assert len(rows) == 7, "registration; per network: failures, all, account"
    stored = b"".join(row["key"] for row in rows)
    assert len(stored) == 7 * 32
    for text in (b"ada@", b"example", b"192.0", b"2001", b"sign-in"):
        assert text not in stored


async def test_only_the_twenty_newest_networks_are_known(client: Client, conn: Any) -> None:
    assert (await sign_up(client, "ada@example.com")).status == 201
    for source in [*strangers(10), HOME, *strangers(22)[10:], "2001:db8::1"]:
        assert (await sign_in(client, "ada@example.com", source, PASSWORD)).status == 200
    rows = await conn.fetch("select network from known_networks order by last_seen_at")
    expected = [*strangers(10)[4:], HOME, *strangers(22)[10:]]
    assert [str(row["network"]) for row in rows] == [
        *(f"{source}/32" for source in expected),
        "2001:db8::/64",
    ]


async def test_stale_rows_are_deleted(start_app: StartApp, conn: Any) -> None:
    """The jobs of a replica that starts later delete them."""
    client = await start_app()
    assert (await sign_up(client, "ada@example.com")).status == 201
    assert (await sign_in(client, "ada@example.com", strangers(1)[0], PASSWORD)).status == 200
    await conn.execute("delete from throttles")
    await conn.execute(
        "insert into throttles values"
        " ('old', now() - interval '1 second'), ('new', now() + interval '1 hour')"
    )
    await conn.execute(
        "update known_networks set last_seen_at = now() - interval '181 days' where network = $1",
        ip_network(HOME),
    )
    await start_app(**WITH_JOBS)

    async def left() -> tuple[list[bytes], list[Any]]:
        keys = await conn.fetch("select key from throttles")
        networks = await conn.fetch("select network from known_networks")
        return [row["key"] for row in keys], [row["network"] for row in networks]

    async def one_of_each() -> bool:
        return [len(each) for each in await left()] == [1, 1]

    await eventually(one_of_each)
    assert await left() == ([b"new"], [ip_network("198.51.100.1/32")])


async def test_headers_say_when_the_next_attempt_is_regained(start_app: StartApp) -> None:
    client = await start_app(throttle_registration_per_ip=FEW)
    response = await sign_up(client, "ada@example.com")
    remaining, wait_s = re.findall(r"=(\d+)", response.headers["RateLimit"])
    assert int(remaining) == 2
    assert 0 < int(wait_s) <= 1200
