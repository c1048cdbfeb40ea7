"""The client's IP, read through trusted proxies."""

import functools
import ipaddress
import re
from itertools import islice
from typing import TypeAlias

from aiohttp import web

from service.context import SETTINGS
from service.http.forwarded import HOPS_MAX, nodes_of_forwarded, nodes_of_x_forwarded_for

IpAddress: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address
Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network

# Room for an IPv6 address in brackets, with an embedded IPv4 one, a zone, a port and spaces.
NODE_MAX_CHARS = 100
# Only one header is read: a proxy passes the other one through as the client sent it.
READERS = {"X-Forwarded-For": nodes_of_x_forwarded_for, "Forwarded": nodes_of_forwarded}
# An IP with a port, or an IPv6 address in brackets (RFC 7239 §6). A port may be obfuscated.
_NODE = re.compile(
    r"(?:(?P<v4>[0-9.]+)(?=:)|\[(?P<v6>[^\[\]]*:[^\[\]]*)\])"
    r"(?::(?:(?P<port>[0-9]{1,5})|_[A-Za-z0-9._-]+))?"
)


def client_ip(request: web.Request) -> IpAddress | None:
    """Return the client's IP as seen by the trusted proxies, or the peer's IP without any.

    Read TRUSTED_PROXY_HEADER from its end, where proxies append, while each hop is in
    TRUSTED_PROXIES. This never reaches entries that the client added. A hop whose client is
    unknown, obfuscated, empty or no IP counts as the client, and so does the ``HOPS_MAX``-th hop.
    None on a Unix socket.
    """
    ip = _parse_ip(request.remote or "")
    settings = request.app[SETTINGS]
    trusted, header = settings.trusted_proxies, settings.trusted_proxy_header
    if not trusted:
        return ip
    nodes = islice(READERS[header](request.headers.getall(header, ())), HOPS_MAX)
    while ip is not None and any(ip in network for network in trusted):
        hop = _parse_node(next(nodes, ""))
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


def _parse_node(text: str) -> IpAddress | None:
    """Parse an IP, with or without a port. None if it is invalid."""
    if len(text) > NODE_MAX_CHARS:
        return None
    text = text.strip()
    match = _NODE.fullmatch(text)
    if match is None:
        return _parse_ip(text)
    return _parse_ip(match["v4"] or match["v6"]) if int(match["port"] or 0) < 65536 else None


@functools.lru_cache(maxsize=4096)
def _show(text: str) -> str | None:
    ip = _parse_ip(text)
    return str(ip) if ip else None


@functools.lru_cache(maxsize=4096)
def _parse_ip(text: str) -> IpAddress | None:
    """Parse an IP; cached, because every request needs it. None if it is invalid.

    IPv4-mapped IPv6 becomes IPv4, and a zone, which means something only to one machine, is left
    out.
    """
    try:
        ip = ipaddress.ip_address(text)
    except ValueError:
        return None
    if isinstance(ip, ipaddress.IPv4Address):
        return ip
    return ip.ipv4_mapped or ipaddress.IPv6Address(int(ip))
