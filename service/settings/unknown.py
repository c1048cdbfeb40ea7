"""Finds variables that were probably meant as settings, but are none."""

import difflib
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from service.settings.model import VARIABLES

# Names of earlier versions, and what replaces them, if anything.
_RENAMED = {
    "BODY_MAX_BYTES": "",
    "DB_CLOSE_TIMEOUT_S": "",
    "PASSWORD_HASH_QUEUE": "",
    "THROTTLE_MAIL_PER_ADDRESS": "THROTTLE_MAIL_PER_IP",
    "THROTTLE_REGISTRATION_PER_ADDRESS": "THROTTLE_REGISTRATION_PER_IP",
    "THROTTLE_SIGN_IN_PER_ADDRESS": "THROTTLE_SIGN_IN_PER_IP",
}
# Guessed from the name of the program.
_OWN_PREFIX = "SHINKEI_"
# Any variable whose first word is that of so many settings was probably meant as one. Fewer are no
# sign of that: desktops set SESSION_MANAGER.
_FAMILY_MIN = 3
FAMILIES = {
    word
    for word, count in Counter(name.partition("_")[0] for name in VARIABLES).items()
    if count >= _FAMILY_MIN
}
# Kubernetes and docker --link set these for each neighbouring service, and pass(1) has its own.
_FOREIGN = re.compile(
    r"\w+_SERVICE_(HOST|PORT)(_\w+)?|\w+_PORT_\d+_(TCP|UDP|SCTP)(_\w+)?|[A-Z]+_ENV_\w+"
    r"|PASSWORD_STORE_\w+"
)
_LINK = re.compile("(tcp|udp|sctp)://")
# Ratios of difflib. With the same first word, the rest decides, and may differ more.
_ALIKE = 0.85
_ALIKE_IN_FAMILY = 0.6
# A name that is longer by more is another program's, such as S3_SECRET_KEY.
_LONGER_MAX_CHARS = 2
# Any short name is like some other.
_SHORT_CHARS = 4


class Unknown(NamedTuple):
    """A variable that is no setting, and the setting that was probably meant, or ""."""

    name: str
    meant: str

    def __str__(self) -> str:
        advice = f" Did you mean {self.meant}?" if self.meant else ""
        return f"{self.name} is not a setting of Shinkei.{advice}"


def find_unknown(environ: Mapping[str, str]) -> Iterator[Unknown]:
    """Yield variables that were probably meant as settings but are none, sorted by name.

    Leaves out those that other programs usually set, and empty ones.
    """
    for name in sorted(environ.keys() - VARIABLES.keys()):
        value = environ[name].strip()
        if not value or _FOREIGN.fullmatch(name) or _LINK.match(value):
            continue
        meant = _find_meant(name.removeprefix(_OWN_PREFIX))
        if meant is not None:
            yield Unknown(name, meant)


def _find_meant(name: str) -> str | None:
    """Return the setting that was meant, or "" if it is unclear; None for another program's."""
    if name in _RENAMED:
        return _RENAMED[name]
    if name in VARIABLES:
        return name
    near = (
        known
        for known in VARIABLES
        if abs(len(known) - len(name)) <= _LONGER_MAX_CHARS and len(known) > _SHORT_CHARS
    )
    word, _, rest = name.partition("_")
    if meant := _closest(name.upper(), near, _ALIKE):
        return meant
    if word in FAMILIES and rest:
        rests = {
            known.partition("_")[2]: known for known in VARIABLES if known.startswith(f"{word}_")
        }
        return rests.get(_closest(rest, rests, _ALIKE_IN_FAMILY), "")
    return None


def _closest(name: str, known: Iterable[str], ratio: float) -> str:
    return next(iter(difflib.get_close_matches(name, known, 1, ratio)), "")
