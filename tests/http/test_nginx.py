"""The service behind nginx, which the block in docs/deployment.md configures."""

import asyncio
import re
import signal
import uuid
from collections import Counter
from collections.abc import AsyncIterator
from ipaddress import ip_network
from pathlib import Path
from typing import NamedTuple

import pytest
from aiohttp import ClientSession, TCPConnector

from service.routes import ROUTES
from service.settings import Database, Settings
from service.worlds.transfer_handlers import TRANSFER_TIMEOUT_S
from tests.support.clients import Client, StartApp
from tests.support.factories import PASSWORD, assert_problem, bearer, register
from tests.support.mailbox import next_mail, text_of
from tests.support.nginx import Nginx, behind_nginx, documented_blocks, errors_of
from tests.support.processes import processes, reserved_port, serving, url_of, workers_of
from tests.support.waiting import eventually

ME = "/api/v1/users/me"
LOGIN = "/api/v1/auth/login"
# Another IP than nginx's own, from which its clients connect.
CLIENT_IP = "127.0.0.2"


class Proxied(NamedTuple):
    """The service, reached directly and through nginx."""

    direct: Client
    session: ClientSession
    nginx: Nginx


@pytest.fixture
async def proxied(start_app: StartApp, tmp_path: Path) -> AsyncIterator[Proxied]:
    with reserved_port() as https_port, reserved_port() as http_port:
        direct = await start_app(
            trusted_proxies=(ip_network("127.0.0.1"),),
            public_origin=f"https://127.0.0.1:{https_port}",
        )
        assert direct.port is not None
        with behind_nginx(tmp_path / "nginx", direct.port, https_port, http_port) as nginx:
            connector = TCPConnector(ssl=nginx.trust, local_addr=(CLIENT_IP, 0))
            async with ClientSession(nginx.url, connector=connector) as session:
                yield Proxied(direct, session, nginx)


@pytest.mark.parametrize("name", documented_blocks())
def test_nginx_accepts_every_block_in_the_documents(name: str, tmp_path: Path) -> None:
    assert errors_of(tmp_path, documented_blocks()[name]) == ""


async def test_client_ip_behind_nginx_is_the_clients_whatever_headers_it_sends(
    proxied: Proxied,
) -> None:
    account = await register(proxied.direct)
    credentials = {"email": account.profile["email"], "password": PASSWORD}
    forged = {"X-Forwarded-For": "6.6.6.6", "Forwarded": "for=6.6.6.6", "X-Real-IP": "6.6.6.6"}
    response = await proxied.session.post(LOGIN, json=credentials, headers=forged)
    headers = bearer((await response.json())["access_token"])
    response = await proxied.session.get(f"{ME}/export", headers=headers)
    held = await response.json()
    for recorded in ("sessions", "audit_events"):
        # Registration was direct, and signing in came through nginx.
        assert {one["ip"] for one in held[recorded]} == {"127.0.0.1", CLIENT_IP}


async def test_log_of_nginx_has_the_request_id_of_the_response(proxied: Proxied) -> None:
    response = await proxied.session.get(ME, headers={"X-Request-ID": "chosen-by-the-client"})
    await assert_problem(response, 401, "not_signed_in")
    request_id = response.headers["X-Request-ID"]
    line = re.compile(rf" {CLIENT_IP} GET {ME} 401 \S+ {request_id}\n")
    # nginx writes the line after it has sent the response.
    assert await eventually(lambda: line.search(proxied.nginx.logged()))


async def test_if_match_works_behind_an_nginx_that_compresses(proxied: Proxied) -> None:
    account = await register(proxied.direct)
    headers = {**account.headers, "Accept-Encoding": "gzip"}
    response = await proxied.session.get(ME, headers=headers)
    assert (await response.json())["name"] != "Ada"
    headers["If-Match"] = response.headers["ETag"]
    response = await proxied.session.patch(ME, json={"name": "Ada"}, headers=headers)
    assert (response.status, (await response.json())["name"]) == (200, "Ada")


async def test_body_above_the_limit_of_the_service_gets_its_problem(proxied: Proxied) -> None:
    # The response may come before all of the body has been sent.
    async with proxied.session.post(LOGIN, json={"email": "x" * 100_000}) as response:
        await assert_problem(response, 413, "content_too_large")


def test_deadlines_of_the_service_are_shorter_than_those_of_nginx() -> None:
    blocks = "".join(documented_blocks().values())
    most, worlds = map(int, re.findall(r"proxy_read_timeout ([0-9]+)s;", blocks))
    assert most > 2 * Settings().request_timeout_s
    assert worlds > TRANSFER_TIMEOUT_S


async def test_world_that_is_larger_than_other_bodies_is_imported(proxied: Proxied) -> None:
    account = await register(proxied.direct)
    world = {"name": "Orrery", "backdrop": "x" * 50_000, "description": "y" * 10_000}
    events = [
        {"id": str(uuid.uuid4()), "t": n, "type": "major", "summary": "z" * 10_000}
        for n in range(30)
    ]
    document = {"version": "1.0", "world": world, "world_events": events}
    url = "/api/v1/worlds/import"
    response = await proxied.session.post(url, json=document, headers=account.headers)
    assert (response.status, (await response.json())["name"]) == (201, "Orrery")


async def test_links_in_mails_lead_to_pages_of_the_front_end(
    proxied: Proxied, settings: Settings
) -> None:
    account = await register(proxied.direct)
    email = account.profile["email"]
    await proxied.session.post("/api/v1/auth/password/forgot", json={"email": email})
    for _ in range(2):
        (link,) = re.findall(r"https://\S+", text_of(await next_mail(settings.data_dir, email)))
        response = await proxied.session.get(link)
        assert (response.status, await response.text()) == (200, "the front end")


async def test_every_route_is_reached_through_nginx_but_the_probes(proxied: Proxied) -> None:
    """The start page is the front end's."""
    paths = {re.sub(r"{[^}]*}", "x", route.path) for route in ROUTES}
    reached = set()
    for path in paths:
        async with proxied.session.get(path) as response:
            if "X-Request-ID" in response.headers:
                reached.add(path)
    assert reached == {path for path in paths if path != "/" and not path.startswith("/health")}


async def test_plain_http_is_redirected(proxied: Proxied) -> None:
    url = f"{proxied.nginx.http_url}{ME}?a=b"
    async with proxied.session.get(url, allow_redirects=False) as response:
        redirected = response.status, response.headers["Location"]
    assert redirected == (301, f"https://127.0.0.1{ME}?a=b")


@pytest.mark.slow
async def test_reload_of_the_service_drops_no_request_through_nginx(
    database: Database, tmp_path: Path
) -> None:
    """nginx does not repeat a POST whose connection was closed, but responds with 502."""
    variables = {
        "WORKERS": "2",
        "SHUTDOWN_DELAY_S": "2",
        "TRUSTED_PROXIES": "127.0.0.1",
        # Nothing reads stderr, so its pipe must not fill up. The URL is on stdout.
        "LOG_LEVEL": "warning",
        "LOG_FORMAT": "console",
        **url_of(database),
    }
    outcomes: Counter[int] = Counter()
    stop = asyncio.Event()

    async def send_requests(session: ClientSession) -> None:
        while not stop.is_set():
            body = {"refresh_token": "x" * 43}
            async with session.post("/api/v1/auth/logout", json=body) as response:
                outcomes[response.status] += 1

    with (
        serving(tmp_path, **variables) as served,
        reserved_port() as https_port,
        reserved_port() as http_port,
        behind_nginx(
            tmp_path / "nginx",
            int(served.url.rpartition(":")[2]),
            https_port,
            http_port,
            keepalive_timeout="1s",
        ) as nginx,
    ):
        async with ClientSession(nginx.url, connector=TCPConnector(ssl=nginx.trust)) as session:
            clients = [asyncio.create_task(send_requests(session)) for _ in range(4)]
            first = workers_of(served.process.pid)
            await eventually(lambda: outcomes.total() > 100)
            served.process.send_signal(signal.SIGHUP)
            await eventually(lambda: not first & set(processes()))
            stop.set()
            await asyncio.gather(*clients)
    assert set(outcomes) == {204}, outcomes
