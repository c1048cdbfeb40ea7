"""The client's IP behind proxies, over HTTP from a peer at 127.0.0.1."""

from ipaddress import ip_address, ip_network

import pytest
from aiohttp import web
from pytest_aiohttp import AiohttpClient

from service.context import SETTINGS
from service.http.client_ip import client_ip, client_network
from service.settings import Settings

LOCAL = ("127.0.0.0/8",)
CHAIN = ("127.0.0.0/8", "10.0.0.0/8", "2001:db8:ffff::/48")


async def show_ip(request: web.Request) -> web.Response:
    return web.Response(text=str(client_ip(request)))


@pytest.mark.parametrize(
    ("trusted", "forwarded", "client"),
    [
        ((), [], "127.0.0.1"),
        ((), ["203.0.113.1"], "127.0.0.1"),
        (("10.0.0.0/8",), ["203.0.113.1"], "127.0.0.1"),
        (LOCAL, [], "127.0.0.1"),
        (LOCAL, ["203.0.113.1"], "203.0.113.1"),
        (LOCAL, [" 2001:db8::1 "], "2001:db8::1"),
        (LOCAL, ["::ffff:203.0.113.1"], "203.0.113.1"),
        (LOCAL, ["6.6.6.6, 203.0.113.1"], "203.0.113.1"),
        (LOCAL, ["6.6.6.6", "203.0.113.1"], "203.0.113.1"),
        (LOCAL, ["203.0.113.1, 10.0.0.1"], "10.0.0.1"),
        (CHAIN, ["203.0.113.1, 10.0.0.1"], "203.0.113.1"),
        (CHAIN, ["203.0.113.1, 2001:db8:ffff::1, ::ffff:10.0.0.1"], "203.0.113.1"),
        (CHAIN, ["6.6.6.6, 203.0.113.1", "10.0.0.2, 10.0.0.1"], "203.0.113.1"),
        (CHAIN, ["6.6.6.6, 203.0.113.1, 198.51.100.1, 10.0.0.1"], "198.51.100.1"),
        (CHAIN, ["10.0.0.2, 10.0.0.1"], "10.0.0.2"),
        (CHAIN, ["203.0.113.1, garbage, 10.0.0.1"], "10.0.0.1"),
        (LOCAL, ["garbage"], "127.0.0.1"),
        (LOCAL, [""], "127.0.0.1"),
        (LOCAL, ["203.0.113.1,"], "127.0.0.1"),
        (LOCAL, ["203.0.113.256"], "127.0.0.1"),
        (LOCAL, ["\u0661.1.1.1"], "127.0.0.1"),
    ],
)
async def test_client_ip_is_resolved_through_trusted_proxies(
    aiohttp_client: AiohttpClient, trusted: tuple[str, ...], forwarded: list[str], client: str
) -> None:
    app = web.Application()
    app[SETTINGS] = Settings(trusted_proxies=tuple(ip_network(text) for text in trusted))
    app.router.add_get("/", show_ip)
    http = await aiohttp_client(app)
    headers = [("X-Forwarded-For", text) for text in forwarded]
    response = await http.get("/", headers=headers)
    assert await response.text() == client


@pytest.mark.parametrize(
    ("ip", "network"),
    [
        ("203.0.113.1", "203.0.113.1/32"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
    ],
)
def test_client_network_is_one_ipv4_or_a_64_bit_ipv6_prefix(ip: str, network: str) -> None:
    assert client_network(ip_address(ip)) == ip_network(network)
