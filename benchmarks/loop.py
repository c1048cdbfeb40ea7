"""Print what the largest inputs of strangers cost on the event loop, in milliseconds.

    python -m benchmarks.loop

Each row is a function, an input of the largest accepted size or above, its KiB, the milliseconds
of the fastest of several runs, and the milliseconds per KiB. The worst come first.
"""

import contextlib
import json
import sys
import time
from collections.abc import Callable

from marshmallow import ValidationError

from service.accounts.preferences import check_json, check_preferences, merge_patch
from service.auth.blocklist import is_blocked
from service.http.codings import BODY_MAX_BYTES
from service.http.fields import EmailAddress, NewPassword, fold_email
from service.http.problems import Problem
from service.http.requests import load_json
from service.json_codec import encode, same
from service.mail.languages import choose_language
from service.users.schemas import MERGE_PROFILE, REGISTER

ROUNDS = 7
_BODY = BODY_MAX_BYTES - 100
_IDEOGRAPHS = "".join(map(chr, range(0x4E00, 0x4E00 + 250)))
_LIST = {"x": [1] * 1998}
_MEMBERS = {f"{number:06}": {"a": number} for number in range(999)}

Work = Callable[[], object]
INPUTS: list[tuple[str, str, Work]] = [
    *(
        (f"is_blocked: {text[:8]!a}…", text, lambda text=text: is_blocked(text))
        for text in (
            "\ufdfa" * 14,
            "ab" * 128,
            "zyx123" * 42 + "é",
            "\u0390" * 255 + "a",
            "password" * 31 + "kq",
        )
    ),
    ("NewPassword", "\ufdfa" * 256, lambda: NewPassword().deserialize("\ufdfa" * 256)),
    *(
        (f"EmailAddress: {text[:8]!a}…", text, lambda text=text: EmailAddress().deserialize(text))
        for text in (
            f"a@{_IDEOGRAPHS[:240]}.com",
            "a@" + ".".join(_IDEOGRAPHS[at : at + 15] for at in range(0, 230, 16)) + ".com",
            "a@" + ".".join(_IDEOGRAPHS[:120]) + ".com",
            "a@" + "\ufdfa" * 240 + ".com",
            "a@" + ".".join(["a"] * 120) + ".com",
            _IDEOGRAPHS[:240] + "@example.com",
        )
    ),
    ("fold_email", "\u0390" * 254, lambda: fold_email("\u0390" * 254)),
    *(
        (f"load_json: {text[:8]!a}…", text, lambda text=text: load_json(text))
        for text in (
            str([0.1] * 1999),
            "[" + ",".join(["0.12345678901234567"] * 1999) + "]",
            "[" + ",".join(["1.2345678901234567e-12"] * 1999) + "]",
            "[" + ",".join(["9" * 32] * 1900) + "]",
            "[" * _BODY,
            "[1," + "1," * (_BODY // 2),
            '"' * _BODY,
            "[" + '"",' * (_BODY // 3),
            '["' + "\\" * _BODY + "," * 100,
            json.dumps({f"{number:020}": 1 for number in range(1999)}),
            json.dumps([{}] * 1999),
        )
    ),
    (
        "MERGE_PROFILE: unknown",
        "x" * 20_000,
        lambda: MERGE_PROFILE.load({f"{number:020}": 1 for number in range(20)}),
    ),
    ("REGISTER: name", "\u4e00" * 200, lambda: REGISTER.load({"name": "\u4e00\u200d" * 100})),
    ("check_json: integers", str(_LIST), lambda: check_json(_LIST)),
    ("check_json: faults", "x" * 4000, lambda: check_json({"x": ["\0"] * 1998})),
    ("check_preferences", "x" * 16_000, lambda: check_preferences({"x": "é" * 8000})),
    *(
        (f"choose_language: {text[:8]}…", text, lambda text=text: choose_language(text, {"en"}))
        for text in (
            "a" + "-a" * 4000,
            ",".join(
                f"{chr(97 + number % 26)}{'b' * (number // 26)}" + "-a" * 7 for number in range(400)
            ),
        )
    ),
    ("merge_patch", "x" * 16_000, lambda: merge_patch(_MEMBERS, _MEMBERS)),
    ("same", str(_LIST), lambda: same(_LIST, _LIST)),
    ("encode", str(_LIST), lambda: encode(_LIST)),
]


def measure_ms(work: Work) -> float:
    """Return the milliseconds of the fastest run, whether or not it refuses the input."""
    times = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        with contextlib.suppress(Problem, ValidationError, ValueError, RecursionError):
            work()
        times.append((time.perf_counter() - started) * 1000)
    return min(times)


def main() -> None:
    rows = [
        (measure_ms(work), len(text.encode("utf-8", "surrogatepass")) / 1024, name)
        for name, text, work in INPUTS
    ]
    sys.stdout.write(f"{'input':40} {'KiB':>7} {'ms':>8} {'ms/KiB':>8}\n")
    for took_ms, kib, name in sorted(rows, reverse=True):
        sys.stdout.write(f"{name:40} {kib:7.2f} {took_ms:8.3f} {took_ms / kib:8.3f}\n")


if __name__ == "__main__":
    main()
