"""The client's IP behind proxies, over HTTP from a peer at 127.0.0.1."""

from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from unittest.mock import Mock

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, make_mocked_request
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict
from pytest_aiohttp import AiohttpClient

from service.context import SETTINGS
from service.http.client_ip import client_ip, client_network
from service.settings import Settings, load_settings

LOCAL = ("127.0.0.0/8",)
CHAIN = ("127.0.0.0/8", "10.0.0.0/8", "2001:db8:ffff::/48")


async def show_ip(request: web.Request) -> web.Response:
    return web.Response(text=str(client_ip(request)))


async def behind(
    aiohttp_client: AiohttpClient, trusted: tuple[str, ...], header: str
) -> TestClient[web.Request, web.Application]:
    app = web.Application()
    app[SETTINGS] = Settings(
        trusted_proxies=tuple(ip_network(text) for text in trusted), trusted_proxy_header=header
    )
    app.router.add_get("/", show_ip)
    return await aiohttp_client(app)


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
        (LOCAL, ["203.0.113.9:4711"], "203.0.113.9"),
        (LOCAL, ["203.0.113.9:0"], "203.0.113.9"),
        (LOCAL, ["203.0.113.9:65535"], "203.0.113.9"),
        (LOCAL, ["[2001:db8::1]:443"], "2001:db8::1"),
        (LOCAL, ["[2001:db8::1]"], "2001:db8::1"),
        (LOCAL, ["[::ffff:203.0.113.9]:443"], "203.0.113.9"),
        (LOCAL, ["fe80::1%eth0"], "fe80::1"),
        (LOCAL, ["[fe80::1%25eth0]:443"], "fe80::1"),
        (CHAIN, ["6.6.6.6:1, 203.0.113.9:2, 10.0.0.1:3"], "203.0.113.9"),
        (CHAIN, ["203.0.113.9:2, [::ffff:10.0.0.1]:3"], "203.0.113.9"),
        (CHAIN, [", ,203.0.113.9,10.0.0.1"], "203.0.113.9"),
        (CHAIN, ["203.0.113.9,,10.0.0.1"], "10.0.0.1"),
        (LOCAL, ["203.0.113.9", ""], "127.0.0.1"),
        (LOCAL, ["203.0.113.9:65536"], "127.0.0.1"),
        (LOCAL, ["203.0.113.9:000080"], "127.0.0.1"),
        (LOCAL, ["203.0.113.9:"], "127.0.0.1"),
        (LOCAL, ["203.0.113.9:http"], "127.0.0.1"),
        (LOCAL, ["203.0.113.9:\u0661"], "127.0.0.1"),
        (LOCAL, ["203.0.113.09"], "127.0.0.1"),
        (LOCAL, ["[203.0.113.9]:80"], "127.0.0.1"),
        (LOCAL, ["[2001:db8::1"], "127.0.0.1"),
        (LOCAL, ["2001:db8::1]:443"], "127.0.0.1"),
        (LOCAL, ["[2001:db8::1]443"], "127.0.0.1"),
        (LOCAL, ["[2001:db8::1]:65536"], "127.0.0.1"),
        (LOCAL, ["fe80::1%"], "127.0.0.1"),
        (LOCAL, ["unix:"], "127.0.0.1"),
        (LOCAL, ["unknown"], "127.0.0.1"),
        (LOCAL, ["[" * 4000], "127.0.0.1"),
    ],
)
async def test_client_ip_is_resolved_through_trusted_proxies(
    aiohttp_client: AiohttpClient, trusted: tuple[str, ...], forwarded: list[str], client: str
) -> None:
    http = await behind(aiohttp_client, trusted, "X-Forwarded-For")
    headers = [("X-Forwarded-For", text) for text in forwarded]
    response = await http.get("/", headers=headers)
    assert await response.text() == client


@pytest.mark.parametrize(
    ("trusted", "forwarded", "client"),
    [
        ((), ["for=203.0.113.9"], "127.0.0.1"),
        (LOCAL, [], "127.0.0.1"),
        (LOCAL, [""], "127.0.0.1"),
        (LOCAL, ["for=203.0.113.9"], "203.0.113.9"),
        (LOCAL, ["For=203.0.113.9"], "203.0.113.9"),
        (LOCAL, ["FOR=203.0.113.9"], "203.0.113.9"),
        (LOCAL, ['for="203.0.113.9"'], "203.0.113.9"),
        (LOCAL, ['for="203.0.113.9:4711"'], "203.0.113.9"),
        (LOCAL, ['for="203.0.113.9:_port"'], "203.0.113.9"),
        (LOCAL, ['For="[2001:db8::1]"'], "2001:db8::1"),
        (LOCAL, ['for="[2001:db8::1]:47011"'], "2001:db8::1"),
        (LOCAL, [r'for="\[2001:db8::1\]:4\711"'], "2001:db8::1"),
        # Not legal without quotes or brackets, but seen.
        (LOCAL, ["for=203.0.113.9:4711"], "203.0.113.9"),
        (LOCAL, ["for=[2001:db8::1]:47011"], "2001:db8::1"),
        (LOCAL, ['for="2001:db8::1"'], "2001:db8::1"),
        (LOCAL, ["by=203.0.113.43;for=203.0.113.9;proto=http;host=a.example"], "203.0.113.9"),
        (LOCAL, ["proto=https ; for=203.0.113.9 ;"], "203.0.113.9"),
        (LOCAL, ['for=203.0.113.9;host="a;for=6.6.6.6"'], "203.0.113.9"),
        (LOCAL, ['for=203.0.113.9;host="a, for=6.6.6.6"'], "203.0.113.9"),
        (LOCAL, [r'for=203.0.113.9;host="a\", for=6.6.6.6;b=\"c"'], "203.0.113.9"),
        (LOCAL, ["for=6.6.6.6, for=203.0.113.9"], "203.0.113.9"),
        (LOCAL, ["for=6.6.6.6", "for=203.0.113.9"], "203.0.113.9"),
        (LOCAL, ['for=6.6.6.6;host="', 'for="203.0.113.9"'], "203.0.113.9"),
        (LOCAL, ['for=6.6.6.6;host=", for="203.0.113.9:80"'], "203.0.113.9"),
        (LOCAL, ['for=6.6.6.6;host="\\, for=203.0.113.9'], "203.0.113.9"),
        (
            CHAIN,
            ['for=203.0.113.9, for="[2001:db8:ffff::1]:1";by=_x', "for=10.0.0.1"],
            "203.0.113.9",
        ),
        (CHAIN, ["for=203.0.113.9, for=_hidden, for=10.0.0.1"], "10.0.0.1"),
        (CHAIN, ["for=203.0.113.9, for=unknown, for=10.0.0.1"], "10.0.0.1"),
        (CHAIN, ["for=203.0.113.9, proto=https, for=10.0.0.1"], "10.0.0.1"),
        (CHAIN, ["for=203.0.113.9,, for=10.0.0.1"], "10.0.0.1"),
        (LOCAL, ["for=_hidden"], "127.0.0.1"),
        (LOCAL, ["for=unknown"], "127.0.0.1"),
        (LOCAL, ['for="_SEVKISEK:80"'], "127.0.0.1"),
        (LOCAL, ["for="], "127.0.0.1"),
        (LOCAL, ['for=""'], "127.0.0.1"),
        (LOCAL, ["203.0.113.9"], "127.0.0.1"),
        (LOCAL, ["for = 203.0.113.9"], "127.0.0.1"),
        (LOCAL, ['for="203.0.113.9'], "127.0.0.1"),
        (LOCAL, ['for=203.0.113.9"'], "127.0.0.1"),
        (LOCAL, [r'for="203.0.113.9\"'], "127.0.0.1"),
        (LOCAL, ["for=203.0.113.9;for=6.6.6.6"], "127.0.0.1"),
        (LOCAL, ["for=203.0.113.9 by=a"], "127.0.0.1"),
        (LOCAL, ["for=203.0.113.9;b\xe9=1"], "127.0.0.1"),
    ],
)
async def test_client_ip_is_read_from_forwarded(
    aiohttp_client: AiohttpClient, trusted: tuple[str, ...], forwarded: list[str], client: str
) -> None:
    http = await behind(aiohttp_client, trusted, "Forwarded")
    headers = [("Forwarded", text) for text in forwarded]
    response = await http.get("/", headers=headers)
    assert await response.text() == client


@pytest.mark.parametrize(
    ("trusted", "forwarded", "client"),
    [
        ("X-Forwarded-For", "203.0.113.9", "203.0.113.9"),
        ("Forwarded", "for=203.0.113.9", "203.0.113.9"),
        ("X-Forwarded-For", "", "127.0.0.1"),
        ("Forwarded", "", "127.0.0.1"),
    ],
)
async def test_header_that_the_proxy_passes_through_does_not_choose_the_client_ip(
    aiohttp_client: AiohttpClient, trusted: str, forwarded: str, client: str
) -> None:
    http = await behind(aiohttp_client, LOCAL, trusted)
    forged = {"X-Forwarded-For": "6.6.6.6", "Forwarded": "for=6.6.6.6", "X-Real-IP": "6.6.6.6"}
    response = await http.get("/", headers={**forged, trusted: forwarded})
    assert await response.text() == client


@pytest.mark.parametrize("trusted", ["::ffff:127.0.0.1", "::ffff:127.0.0.0/104"])
async def test_trusted_proxy_may_be_an_ipv4_mapped_network(
    aiohttp_client: AiohttpClient, trusted: str
) -> None:
    app = web.Application()
    app[SETTINGS] = load_settings({"TRUSTED_PROXIES": trusted})
    app.router.add_get("/", show_ip)
    http = await aiohttp_client(app)
    response = await http.get("/", headers={"X-Forwarded-For": "203.0.113.9"})
    assert await response.text() == "203.0.113.9"


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


def request_of(header: str, lines: list[str]) -> web.Request:
    """Return a request from a trusted peer, with the header on these lines."""
    app = web.Application()
    trusted = tuple(ip_network(text) for text in CHAIN)
    app[SETTINGS] = Settings(trusted_proxies=trusted, trusted_proxy_header=header)
    headers = CIMultiDict((header, line) for line in lines)
    transport = Mock(**{"get_extra_info.return_value": ("127.0.0.1", 1)})
    return make_mocked_request("GET", "/", headers=headers, app=app, transport=transport)


def is_trusted(ip: IPv4Address | IPv6Address) -> bool:
    return any(ip in ip_network(network) for network in CHAIN)


@pytest.mark.parametrize("header", ["X-Forwarded-For", "Forwarded"])
def test_at_most_32_proxies_are_asked_for_the_client(header: str) -> None:
    prefix = "for=" if header == "Forwarded" else ""
    hops = [f"{prefix}10.0.0.{n}" for n in range(100)]
    found = [client_ip(request_of(header, lines)) for lines in (hops, [",".join(hops)])]
    assert found == [ip_address("10.0.0.68")] * 2


# What a client may send, in any form that makes parsers lose their place.
FORGED = st.lists(
    st.one_of(
        st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), max_size=30),
        st.text(st.sampled_from('",;=\\[]: for6.'), max_size=30),
        st.sampled_from(['for="', "for=6.6.6.6", "6.6.6.6", 'for=6.6.6.6;host="', "\\", ","]),
    ),
    max_size=4,
)
CLIENTS = (st.ip_addresses(v=4) | st.ip_addresses(v=6)).filter(
    lambda ip: not is_trusted(ip) and not (ip.version == 6 and ip.ipv4_mapped)
)
PROXIES = st.ip_addresses(network="10.0.0.0/8") | st.ip_addresses(network="2001:db8:ffff::/48")
PORTS = st.integers(0, 65535).map(str)
OBFUSCATED = st.from_regex(r"_[A-Za-z0-9._-]{1,10}", fullmatch=True)
ZONES = st.sampled_from(["", "%eth0", "%25eth0"])


@st.composite
def written(draw: st.DrawFn, ip: IPv4Address | IPv6Address, ports: st.SearchStrategy[str]) -> str:
    """Write the IP in one of its forms, with or without a port."""
    forms = [str(ip)]
    if ip.version == 4:
        forms.append(f"[::ffff:{ip}]")
        forms.append(f"[{IPv6Address(f'::ffff:{ip}').exploded}]")
        with_port = forms
    else:
        zone = draw(ZONES) if ip.is_link_local else ""
        with_port = [f"[{ip}{zone}]", f"[{ip.exploded.upper()}{zone}]"]
        forms += [str(ip) + zone, *with_port]
    if draw(st.booleans()):
        return f"{draw(st.sampled_from(with_port))}:{draw(ports)}"
    return draw(st.sampled_from(forms))


@st.composite
def element_of(draw: st.DrawFn, ip: IPv4Address | IPv6Address) -> str:
    """Write an element of Forwarded, as RFC 7239 has it, with any other parameters."""
    node = draw(written(ip, PORTS | OBFUSCATED))
    quoted = "".join(f"\\{char}" if draw(st.integers(0, 9)) == 0 else char for char in node)
    value = node if node == str(ip) and ip.version == 4 else f'"{quoted}"'
    pairs = [f"{draw(st.sampled_from(['for', 'For', 'FOR']))}={value}"]
    others = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), max_size=20)
    for name in draw(st.lists(st.sampled_from(["host", "by", "proto", "ext"]), unique=True)):
        text = draw(others).replace("\\", "\\\\").replace('"', '\\"')
        pairs.append(f'{name}="{text}"')
    return ";".join(draw(st.permutations(pairs)))


@st.composite
def chains(draw: st.DrawFn, header: str) -> tuple[list[str], IPv4Address | IPv6Address]:
    """Return lines of the header, and the IP of the client that the first trusted proxy saw."""
    client, *proxies = draw(CLIENTS), *draw(st.lists(PROXIES, max_size=4))
    lines = draw(FORGED)
    for ip in (client, *proxies):
        added = draw(element_of(ip) if header == "Forwarded" else written(ip, PORTS))
        if draw(st.booleans()) and lines:
            spaces = draw(st.sampled_from(["", " ", "  "]))
            lines[-1] += f"{spaces},{spaces}{added}"
        else:
            lines.append(added)
    return lines, client


@pytest.mark.property
@pytest.mark.parametrize("header", ["X-Forwarded-For", "Forwarded"])
@given(data=st.data())
def test_client_is_the_last_hop_that_is_not_trusted_whatever_it_sent_itself(
    header: str, data: st.DataObject
) -> None:
    lines, client = data.draw(chains(header))
    found = client_ip(request_of(header, lines))
    assert found == ip_address(str(client).partition("%")[0])


@pytest.mark.property
@pytest.mark.parametrize("header", ["X-Forwarded-For", "Forwarded"])
@given(forged=FORGED, proxy=PROXIES, hidden=st.sampled_from(["unknown", "_hidden", ""]))
def test_client_that_a_proxy_hides_is_that_proxy_whatever_it_sent_itself(
    header: str, forged: list[str], proxy: IPv4Address | IPv6Address, hidden: str
) -> None:
    prefix = "for=" if header == "Forwarded" else ""
    shown = (
        f'{prefix}"[{proxy}]"'
        if header == "Forwarded" and proxy.version == 6
        else f"{prefix}{proxy}"
    )
    found = client_ip(request_of(header, [*forged, prefix + hidden, shown]))
    assert found == proxy
