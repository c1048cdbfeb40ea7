"""The client's IP, read through trusted proxies."""

import functools
import ipaddress
from typing import TypeAlias

from aiohttp import web

from service.context import SETTINGS

IpAddress: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address
Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network

# Room for an IPv6 address with an embedded IPv4 one, a zone and surrounding spaces.
IP_MAX_CHARS = 80


def client_ip(request: web.Request) -> IpAddress | None:
    """Return the client's IP as seen by the trusted proxies, or the peer's IP without any.

    Read ``X-Forwarded-For`` from its end, where proxies append, while each hop is in
    TRUSTED_PROXIES. This never reaches entries that the client added. None on a Unix socket.
    """
    ip = _parse(request.remote or "")
    trusted = request.app[SETTINGS].trusted_proxies
    if not trusted:
        return ip
    hops = ",".join(request.headers.getall("X-Forwarded-For", ())).split(",")
    while ip is not None and hops and any(ip in network for network in trusted):
        hop = _parse(hops.pop())
        if hop is None:
            break
        ip = hop
    return ip


def shown_client_ip(request: web.Request) -> str | None:
    """Return the client's IP as text for the access log, or None."""
    if not request.app[SETTINGS].trusted_proxies:
        return _show(request.remote or "")
    ip = client_ip(request)
    return str(ip) if ip else None


@functools.lru_cache(maxsize=4096)
def client_network(ip: IpAddress) -> Network:
    """Return the network that counts as one client: a single IPv4 address or an IPv6 /64."""
    if isinstance(ip, ipaddress.IPv6Address):
        return ipaddress.IPv6Network((ip, 64), strict=False)
    return ipaddress.IPv4Network(ip)


def network_of(request: web.Request) -> Network | None:
    """Return the network that counts as the client; None on a Unix socket."""
    ip = client_ip(request)
    return client_network(ip) if ip else None


def _parse(text: str) -> IpAddress | None:
    """Parse an IP, with IPv4-mapped IPv6 as IPv4. None if it is invalid."""
    return _parse_short(text) if len(text) <= IP_MAX_CHARS else None


@functools.lru_cache(maxsize=4096)
def _show(text: str) -> str | None:
    ip = _parse(text)
    return str(ip) if ip else None


@functools.lru_cache(maxsize=4096)
def _parse_short(text: str) -> IpAddress | None:
    """Parse an IP; cached, because every request needs it."""
    try:
        ip = ipaddress.ip_address(text.strip())
    except ValueError:
        return None
    mapped = ip.ipv4_mapped if isinstance(ip, ipaddress.IPv6Address) else None
    return mapped or ip
