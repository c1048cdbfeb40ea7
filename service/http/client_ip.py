"""Whose request it is: the client's address, through the proxies that are trusted."""

import functools
import ipaddress
from typing import TypeAlias

from aiohttp import web

from service.context import SETTINGS

IpAddress: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address
Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network

# Of IPv6 with an IPv4 address in it, a zone, and spaces around.
IP_MAX_CHARS = 80


def client_ip(request: web.Request) -> IpAddress | None:
    """The address that the nearest trusted proxy saw, or the peer's where none stands between.

    ``X-Forwarded-For`` is read from its end, where proxies append, and only as long as each hop is
    in TRUSTED_PROXIES: what a client wrote into it itself is never reached. None on a Unix socket.
    """
    address = _parse(request.remote or "")
    trusted = request.app[SETTINGS].trusted_proxies
    if not trusted:
        return address
    hops = ",".join(request.headers.getall("X-Forwarded-For", ())).split(",")
    while address is not None and hops and any(address in network for network in trusted):
        hop = _parse(hops.pop())
        if hop is None:
            break
        address = hop
    return address


def shown_client_ip(request: web.Request) -> str | None:
    """The client's address as text, as each request's line in the log has it."""
    if not request.app[SETTINGS].trusted_proxies:
        return _show(request.remote or "")
    address = client_ip(request)
    return str(address) if address else None


def client_network(address: IpAddress) -> Network:
    """What counts as one client: an IPv4 address, or the /64 that an IPv6 client is given."""
    if isinstance(address, ipaddress.IPv6Address):
        return ipaddress.IPv6Network((address, 64), strict=False)
    return ipaddress.IPv4Network(address)


def _parse(text: str) -> IpAddress | None:
    """An address, with IPv4 inside of IPv6 taken out, or None."""
    return _parse_short(text) if len(text) <= IP_MAX_CHARS else None


@functools.lru_cache(maxsize=4096)
def _show(text: str) -> str | None:
    address = _parse(text)
    return str(address) if address else None


@functools.lru_cache(maxsize=4096)
def _parse_short(text: str) -> IpAddress | None:
    """Remembered, because each request asks, and parsing takes 3 µs."""
    try:
        address = ipaddress.ip_address(text.strip())
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address
