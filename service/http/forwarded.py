"""Headers in which proxies tell for whom they forward: Forwarded (RFC 7239), X-Forwarded-For."""

import re
from collections.abc import Iterator, Sequence

# How many proxies are asked; more than there are on any way.
HOPS_MAX = 32
_NAME = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
# An element of Forwarded, written backwards. A quote that is not the first of its string has a
# backslash before it, and the first one has "=". So the quotes that a client wrote further to the
# left can't hide what a proxy added.
_BACKWARDS = re.compile(r'((?:"(?:[^"]|"\\)*+"=|[^",])*+)(?:,|\Z)')
# Addresses need quotes because of their colons and brackets, but some proxies omit them.
_PAIR = re.compile(
    rf'[\s;]*+(?:(?P<name>{_NAME})=(?:"(?P<quoted>(?:[^"\\]|\\.)*+)"|(?P<bare>[^\s",;=\\]*+))\s*+)?'
    r"(?:;|\Z)"
)


def nodes_of_forwarded(lines: Sequence[str]) -> Iterator[str]:
    """Yield for whom each proxy forwarded, the last proxy first.

    An element without a ``for``, with two, or that is malformed yields an empty text.
    """
    backwards = ",".join(lines)[::-1]
    start = 0
    while start <= len(backwards):
        match = _BACKWARDS.match(backwards, start)
        if match is None:
            yield ""
            return
        yield _node_of_element(match[1][::-1])
        # A comma at the end has an empty element behind it.
        start = match.end() + (match.end() == match.end(1))


def nodes_of_x_forwarded_for(lines: Sequence[str]) -> Iterator[str]:
    """Yield for whom each proxy forwarded, the last proxy first."""
    for line in reversed(lines):
        yield from reversed(line.rsplit(",", HOPS_MAX))


def _node_of_element(element: str) -> str:
    nodes = []
    start = 0
    while start < len(element):
        match = _PAIR.match(element, start)
        if match is None:
            return ""
        if (match["name"] or "").lower() == "for":
            quoted = match["quoted"]
            nodes.append(match["bare"] if quoted is None else re.sub(r"\\(.)", r"\1", quoted))
        start = match.end()
    return nodes[0] if len(nodes) == 1 else ""
