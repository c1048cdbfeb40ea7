"""Environment variables: their declaration, and parsers for their text."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_network
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar
from urllib.parse import urlsplit

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class SettingsError(Exception):
    """A variable is missing or invalid. The message names it and the expected value."""


@dataclass(frozen=True, slots=True)
class Parser(Generic[T_co]):
    """Parses a variable's text; ``parse`` raises ValueError, OSError or RuntimeError.

    ``expects`` completes "PORT: expected …" and describes the values in the documentation.
    """

    expects: str
    parse: Callable[[str], T_co]


@dataclass(frozen=True, slots=True)
class Variable(Generic[T_co]):
    """The one declaration of an environment variable, for parsing, errors, help and documents.

    ``help`` is Markdown. So is ``shown_default``, which describes a default that is not fixed.
    """

    name: str
    group: str
    default: T_co
    parser: Parser[T_co]
    help: str
    shown_default: str = ""

    def parse(self, text: str) -> T_co:
        """Parse the value. Raises SettingsError, which does not show the text."""
        try:
            return self.parser.parse(text)
        except (ValueError, OSError, RuntimeError):
            raise self.refusal() from None

    def refusal(self, because: str = "") -> SettingsError:
        """Build the error for an invalid value."""
        return SettingsError(f"{self.name}: expected {self.parser.expects}{because}")

    def missing(self, condition: str) -> SettingsError:
        """Build the error for a missing value; ``condition`` says when it is required."""
        return SettingsError(f"{self.name}: required {condition}; expected {self.parser.expects}")

    @property
    def default_text(self) -> str:
        """The default as an operator would write it, or in words; empty if there is none."""
        if self.shown_default or not isinstance(self.default, bool | int | float | str | Rate):
            return self.shown_default
        shown = str(self.default)
        return f"`{shown.lower() if isinstance(self.default, bool) else shown}`"


def variable(
    name: str,
    group: str,
    default: T,
    parser: Parser[T],
    help_: str,
    *,
    shown_default: str = "",
    secret: bool = False,
) -> T:
    """Declare a field of Settings that a variable sets. ``repr`` leaves secrets out."""
    declared = Variable(name, group, default, parser, help_, shown_default)
    declared_field: T = field(default=default, repr=not secret, metadata={"variable": declared})
    return declared_field


class Rate(NamedTuple):
    """At most ``requests`` at once, then as many per ``window_s`` seconds."""

    requests: int
    window_s: int

    def __str__(self) -> str:
        unit, unit_s = next(
            (unit, unit_s) for unit, unit_s in _UNITS_S.items() if self.window_s % unit_s == 0
        )
        count = self.window_s // unit_s
        return f"{self.requests}/{count if count > 1 else ''}{unit}"


_RATE = re.compile(r"([1-9][0-9]*)/([1-9][0-9]*)?([smhd])")
_REQUESTS_MAX = 99_999
_UNITS_MAX = 999
_UNITS_S = {"d": 86_400, "h": 3600, "m": 60, "s": 1}


def _parse_rate(text: str) -> Rate:
    """Parse ``10/15m``: 10 requests in 15 minutes. Units are s, m, h and d; ``1`` is optional."""
    match = _RATE.fullmatch(text)
    if match is None:
        raise ValueError
    requests, count = int(match[1]), int(match[2] or 1)
    if requests > _REQUESTS_MAX or count > _UNITS_MAX:
        raise ValueError
    return Rate(requests, count * _UNITS_S[match[3]])


RATE = Parser(
    f"1 to {_REQUESTS_MAX} attempts per 1 to {_UNITS_MAX} s, m, h or d, such as 10/15m", _parse_rate
)


def text(expects: str) -> Parser[str]:
    """Accept any text."""
    return Parser(expects, str)


def choice(*choices: str) -> Parser[str]:
    """Accept one of ``choices``."""
    return Parser("one of " + ", ".join(choices), lambda text: choices[choices.index(text)])


def header_name(*names: str) -> Parser[str]:
    """Accept one of ``names``, whose case does not matter."""
    known = [name.lower() for name in names]
    return Parser("one of " + ", ".join(names), lambda text: names[known.index(text.lower())])


def flag() -> Parser[bool]:
    """Accept ``true``, ``false``, ``1`` and ``0``."""
    values = {"true": True, "1": True, "false": False, "0": False}

    def parse(text: str) -> bool:
        if text not in values:
            raise ValueError
        return values[text]

    return Parser("true or false", parse)


def integer(low: int, high: int, unit: str = "") -> Parser[int]:
    """Accept ASCII digits only: int() would also accept 1_000 and digits of other scripts."""

    def parse(text: str) -> int:
        if not re.fullmatch(r"[0-9]+", text) or not low <= int(text) <= high:
            raise ValueError
        return int(text)

    of = f" of {unit}" if unit else ""
    return Parser(f"a whole number{of} from {low} to {high}", parse)


def seconds(low: float, high: float) -> Parser[float]:
    """Accept seconds, with or without a fraction."""

    def parse(text: str) -> float:
        if not re.fullmatch(r"[0-9]+(\.[0-9]*)?|\.[0-9]+", text) or not low <= float(text) <= high:
            raise ValueError
        return float(text)

    return Parser(f"a number of seconds from {low:g} to {high:g}", parse)


def _split(text: str) -> list[str]:
    return [stripped for part in text.split(",") if (stripped := part.strip())]


def _parse_networks(text: str) -> tuple[IPv4Network | IPv6Network, ...]:
    return tuple(_parse_network(part) for part in _split(text))


def _parse_network(text: str) -> IPv4Network | IPv6Network:
    """Parse a network. An IPv4-mapped one becomes IPv4, as the IPs that are looked up in it do."""
    network = ip_network(text)
    if network.prefixlen >= 96 and isinstance(network, IPv6Network):
        mapped = network.network_address.ipv4_mapped
        return IPv4Network((mapped, network.prefixlen - 96)) if mapped else network
    return network


NETWORKS = Parser(
    "IP addresses or networks, separated by commas, such as 10.0.0.0/8", _parse_networks
)

# The serialization that browsers send (RFC 6454 §6.2); anything else would never match.
_ORIGIN = re.compile(
    r"(?P<scheme>[a-z][a-z0-9+.-]*)://([a-z0-9._-]+|\[(?P<ip>[0-9a-f:.]+)\])"
    r"(:(?P<port>[1-9][0-9]{0,4}))?"
)
_DEFAULT_PORTS = {("http", "80"), ("https", "443")}


def _parse_origins(text: str) -> frozenset[str]:
    origins = frozenset(_split(text))
    for match in map(_ORIGIN.fullmatch, origins):
        if match is None or (match["scheme"], match["port"]) in _DEFAULT_PORTS:
            raise ValueError
        _check_ip_and_port(match)
    return origins


def _check_ip_and_port(match: re.Match[str]) -> None:
    """Raise ValueError if ``ip`` is no IPv6 address, or ``port`` is out of range."""
    if match["ip"]:
        IPv6Address(match["ip"])
    if match["port"] and not 0 < int(match["port"]) < 65536:
        raise ValueError


ORIGINS = Parser(
    "origins as browsers send them, separated by commas: in lower case, without a path or a default"
    " port, such as https://app.example",
    _parse_origins,
)


# Tokens (RFC 9110 §5.6.2) without the rarer characters, above all without the wildcard.
_HEADER = re.compile(r"[A-Za-z0-9._-]+")


def _parse_headers(text: str) -> frozenset[str]:
    names = frozenset(_split(text))
    if not all(map(_HEADER.fullmatch, names)):
        raise ValueError
    return names


HEADERS = Parser(
    "names of headers, separated by commas, such as x-datadog-trace-id", _parse_headers
)


_PUBLIC_ORIGIN = re.compile(
    r"https?://([A-Za-z0-9.-]+|\[(?P<ip>[0-9A-Fa-f:.]+)\])(:(?P<port>[0-9]+))?"
)


def _parse_public_origin(text: str) -> str:
    """Parse an origin. Returns it as browsers send it, for comparison with theirs."""
    match = _PUBLIC_ORIGIN.fullmatch(text)
    if match is None:
        raise ValueError
    _check_ip_and_port(match)
    url = urlsplit(text.lower())
    is_default = (url.scheme, str(url.port)) in _DEFAULT_PORTS
    return f"{url.scheme}://{url.netloc.rpartition(':')[0] if is_default else url.netloc}"


PUBLIC_ORIGIN = Parser(
    "an origin without a path, such as https://app.example", _parse_public_origin
)


# A domain name (RFC 1123 §2.1). Its last label is no number, as that would be an IP address.
_LABEL = "(?:[a-z0-9-]{0,61}[a-z0-9])?"
_DOMAIN = re.compile(rf"(?=.{{1,253}}$)(?:[a-z0-9]{_LABEL}\.)*[a-z]{_LABEL}")


def _parse_domain(text: str) -> str:
    if not _DOMAIN.fullmatch(text):
        raise ValueError
    return text


DOMAIN = Parser("a domain name in lower case, such as app.example", _parse_domain)


def has_passkeys(origin: str) -> bool:
    """Return whether browsers let pages of this origin use passkeys."""
    url = urlsplit(origin)
    host = url.hostname or ""
    is_local = host == "localhost" or host.endswith(".localhost")
    is_secure = url.scheme == "https" or (url.scheme == "http" and is_local)
    return is_secure and _DOMAIN.fullmatch(host) is not None


def _parse_passkey_origins(text: str) -> frozenset[str]:
    origins = _parse_origins(text)
    if not origins or not all(map(has_passkeys, origins)):
        raise ValueError
    return origins


PASSKEY_ORIGINS = Parser(
    "origins as browsers send them, separated by commas, such as https://app.example: https:// and"
    " no IP address, or http://localhost",
    _parse_passkey_origins,
)


def _parse_directory(text: str) -> Path:
    path = parse_path(text)
    if not path.is_dir():
        raise ValueError
    return path


def parse_path(text: str) -> Path:
    """Return the absolute path; ``~`` is a home. Raises RuntimeError if there is no such user."""
    return Path(text).expanduser().absolute()


PATH = Parser("the path of a directory", parse_path)
DIRECTORY = Parser("the path of a directory that exists", _parse_directory)


def _parse_readable_file(text: str) -> Path:
    path = Path(text)
    path.read_text(encoding="utf-8")
    return path


READABLE_FILE = Parser("the path of a file that can be read", _parse_readable_file)


SECRET_KEY_MIN_BYTES = 32


def _parse_secret_key(text: str) -> str:
    if len(text.encode()) < SECRET_KEY_MIN_BYTES:
        raise ValueError
    return text


SECRET_KEY = Parser(
    f"at least {SECRET_KEY_MIN_BYTES} bytes of random text, such as the output of:"
    " openssl rand -base64 48",
    _parse_secret_key,
)
