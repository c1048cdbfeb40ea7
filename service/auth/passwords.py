"""Password hashing: argon2id on dedicated threads, so that the event loop is never blocked."""

import asyncio
import os
import re
import time
import unicodedata
from collections.abc import AsyncIterator, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

from aiohttp import web

from service.auth.blocklist import is_blocked
from service.context import SETTINGS
from service.http.field_errors import field_error
from service.http.problems import RETRY_SOON, Problem, ProblemType, invalid_fields

if TYPE_CHECKING:
    import argon2

HASHER: web.AppKey["Hasher"] = web.AppKey("hasher")

WRONG_PASSWORD = ProblemType(403, "wrong_password", "The current password is wrong.")
TOO_MANY_SIGN_INS = ProblemType(
    503, "too_many_sign_ins", "Too many sign-ins are in progress. Try again shortly.", RETRY_SOON
)

T = TypeVar("T")

PERSONAL_WORD_MIN_LENGTH = 3
# Of an email or name after NFKC, which can turn one character into eighteen.
PERSONAL_MAX_LENGTH = 256
_WORD = re.compile(r"\w+")
# Minimum of OWASP's Password Storage Cheat Sheet.
MEMORY_MIN_KIB = 19 * 1024
ITERATIONS_MIN = 2
# RFC 9106 §4, second recommended option. Every hashing thread holds this much memory, so beyond it
# more iterations are the better use of time.
MEMORY_ENOUGH_KIB = 64 * 1024


@dataclass(slots=True)
class Hasher:
    """The hashing executor, its queue length and its limit.

    ``decoy`` is a hash that belongs to no account. Verifying against it takes as long as verifying
    a real one.
    """

    argon2id: "argon2.PasswordHasher"
    executor: ThreadPoolExecutor
    queue_limit: int
    decoy: str
    workers: int
    queued: int = 0
    # Called after each task: seconds it waited for a thread, seconds it ran.
    timers: list[Callable[[float, float], None]] = field(default_factory=list)


async def hasher_context(app: web.Application) -> AsyncIterator[None]:
    settings = app[SETTINGS]
    argon2id = _argon2id(settings.password_hash_memory_kib, settings.password_hash_iterations)
    # Worker processes share the cores, so that they never hash more at once than there are cores.
    workers = settings.password_hash_workers or max(1, (os.cpu_count() or 1) // settings.workers)
    with ThreadPoolExecutor(workers, thread_name_prefix="argon2") as executor:
        loop = asyncio.get_running_loop()
        decoy = await loop.run_in_executor(executor, argon2id.hash, os.urandom(16))
        app[HASHER] = Hasher(argon2id, executor, settings.password_hash_queue, decoy, workers)
        yield


def _argon2id(memory_kib: int, iterations: int) -> "argon2.PasswordHasher":
    # A slow import, which only commands that hash need.
    import argon2

    return argon2.PasswordHasher(
        time_cost=iterations, memory_cost=memory_kib, parallelism=1, type=argon2.Type.ID
    )


def require_acceptable(
    app: web.Application, password: str, pointer: str, personal: Iterable[str] = ()
) -> None:
    """Raise Problem 422 if the password must not be used (NIST SP 800-63B-4 §3.1.1.2).

    Refuses a password that is too short, common, breached, or mostly made of words from
    ``personal``: the account's own email and name.
    """
    minimum = app[SETTINGS].password_min_length
    # The smaller of both: U+FDFA alone becomes 18 characters, and others compose into fewer.
    if min(len(password), len(_normalize(password))) < minimum:
        detail = f"Must be at least {minimum} characters long."
        raise invalid_fields(field_error(pointer, "too_short", detail))
    if is_blocked(password):
        detail = "This password is too common or too easy to guess."
        raise invalid_fields(field_error(pointer, "too_common", detail))
    if _resembles(password, personal):
        detail = "Must not consist mostly of your own email or name."
        raise invalid_fields(field_error(pointer, "too_personal", detail))


def _resembles(password: str, personal: Iterable[str]) -> bool:
    """Return whether words from ``personal`` make up more than half of the password."""
    words = {
        word
        for text in personal
        for word in _WORD.findall(_normalize(text).casefold()[:PERSONAL_MAX_LENGTH])
    }
    left = folded = _normalize(password).casefold()
    for word in sorted(words, key=len, reverse=True):
        if len(word) >= PERSONAL_WORD_MIN_LENGTH:
            left = left.replace(word, "")
    return len(left) * 2 < len(folded)


async def hash_password(app: web.Application, password: str) -> str:
    """Return the encoded argon2id hash. Raises Problem 503 if the queue is full."""
    argon2id = app[HASHER].argon2id
    return await _on_executor(app, lambda: argon2id.hash(_normalize(password)))


async def verify_password(app: web.Application, password_hash: str | None, password: str) -> bool:
    """Return whether the password matches. Without a hash, take as long and return False.

    Raises Problem 503 if the queue is full.
    """
    import argon2

    hasher = app[HASHER]

    def verify() -> bool:
        try:
            return hasher.argon2id.verify(password_hash or hasher.decoy, _normalize(password))
        except (argon2.exceptions.VerificationError, argon2.exceptions.InvalidHashError):
            return False

    return await _on_executor(app, verify) and password_hash is not None


async def require_own(app: web.Application, password_hash: str | None, password: str) -> None:
    """Raise Problem 403 if this is not the account's current password."""
    if not await verify_password(app, password_hash, password):
        raise Problem(WRONG_PASSWORD)


async def rehash_password(app: web.Application, password_hash: str, password: str) -> str | None:
    """Return a new hash of the verified password, or None if the hash is up to date."""
    if not app[HASHER].argon2id.check_needs_rehash(password_hash):
        return None
    return await hash_password(app, password)


def measure_ms(memory_kib: int, iterations: int, tries: int = 5) -> float:
    """Return the time of one hash: the minimum of several, as other load only adds to it."""
    argon2id = _argon2id(memory_kib, iterations)
    times = []
    for _ in range(tries):
        started = time.perf_counter()
        argon2id.hash(b"as long as most passwords are")
        times.append((time.perf_counter() - started) * 1000)
    return min(times)


def calibrate(
    target_ms: float, measure: Callable[[int, int], float] = measure_ms
) -> tuple[int, int, float]:
    """Return memory in KiB, iterations, and the measured milliseconds of one hash.

    Gets as close to ``target_ms`` as possible without exceeding it, raising memory first and
    iterations second. Never goes below OWASP's minimum, however slow the machine. ``measure`` takes
    memory in KiB and iterations, and returns milliseconds.
    """
    memory_kib, iterations = MEMORY_MIN_KIB, ITERATIONS_MIN
    factor = target_ms / measure(memory_kib, iterations)
    if factor > 1:
        memory_kib = min(MEMORY_ENOUGH_KIB, int(memory_kib * factor) // 1024 * 1024)
        per_iteration_ms = measure(memory_kib, iterations) / iterations
        iterations = max(iterations, int(target_ms / per_iteration_ms))
    while (measured_ms := measure(memory_kib, iterations)) > target_ms:
        if iterations == ITERATIONS_MIN:
            break
        iterations -= 1
    return memory_kib, iterations, measured_ms


def _normalize(password: str) -> str:
    """Apply NFKC, so that a password is the same on any keyboard (NIST SP 800-63B-4 §3.1.1.2)."""
    return unicodedata.normalize("NFKC", password)


async def _on_executor(app: web.Application, work: Callable[[], T]) -> T:
    hasher = app[HASHER]
    if hasher.queued >= hasher.queue_limit:
        raise Problem(TOO_MANY_SIGN_INS)
    hasher.queued += 1
    asked = time.perf_counter()

    def timed() -> tuple[T, float, float]:
        started = time.perf_counter()
        result = work()
        return result, started - asked, time.perf_counter() - started

    try:
        loop = asyncio.get_running_loop()
        result, waited_s, took_s = await loop.run_in_executor(hasher.executor, timed)
    finally:
        hasher.queued -= 1
    for timer in hasher.timers:
        timer(waited_s, took_s)
    return result
