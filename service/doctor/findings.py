"""What the doctor finds, and the deadline for calls that have none of their own."""

import threading
from collections.abc import Callable
from typing import Literal, NamedTuple, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class Finding(NamedTuple):
    """What holds of one thing; ``mend`` says what to do where that is not well."""

    check: str
    status: Literal["ok", "warn", "fail"]
    detail: str
    mend: str = ""


def ok(check: str, detail: str) -> Finding:
    return Finding(check, "ok", detail)


def warn(check: str, detail: str, mend: str) -> Finding:
    """It works, but not as it should."""
    return Finding(check, "warn", detail, mend)


def fail(check: str, detail: str, mend: str) -> Finding:
    """The service does not start, or requests fail."""
    return Finding(check, "fail", detail, mend)


def within(deadline_s: float, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """The function's result. Raises TimeoutError where it takes longer, and leaves it running.

    On a thread that does not keep the process from ending, as a pool's threads would: a name server
    or a network disk that does not answer may hold it for minutes.
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
