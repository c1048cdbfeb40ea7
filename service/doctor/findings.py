"""Findings, and a deadline for calls that have none of their own."""

import threading
from collections.abc import Callable
from typing import Literal, NamedTuple, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class Finding(NamedTuple):
    """The result of one check; ``fix`` says how to fix it, and is empty if it is ok."""

    check: str
    status: Literal["ok", "warn", "fail"]
    detail: str
    fix: str = ""


def ok(check: str, detail: str) -> Finding:
    return Finding(check, "ok", detail)


def warn(check: str, detail: str, fix: str) -> Finding:
    """Report something that works, but not as it should."""
    return Finding(check, "warn", detail, fix)


def fail(check: str, detail: str, fix: str) -> Finding:
    """Report something that keeps the service from starting, or fails requests."""
    return Finding(check, "fail", detail, fix)


def within(deadline_s: float, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Return the function's result. Raises TimeoutError after the deadline and leaves it running.

    It runs on a daemon thread, as a pool's thread would keep the process from exiting. An
    unresponsive name server or network disk may block it for minutes.
    """
    results: list[T] = []
    errors: list[BaseException] = []

    def call() -> None:
        try:
            results.append(function(*args, **kwargs))
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(deadline_s)
    if errors:
        raise errors[0]
    if not results:
        raise TimeoutError
    return results[0]
