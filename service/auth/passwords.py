"""Password hashing: argon2id on dedicated threads, so that the event loop is never blocked."""

import asyncio
import functools
import math
import os
import re
import time
import unicodedata
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from aiohttp import web

from service.auth.blocklist import is_blocked
from service.context import REQUEST_CONTEXT, SETTINGS
from service.http.client_ip import Network, network_of
from service.http.field_errors import field_error
from service.http.fields import password_lengths
from service.http.problems import RETRY_SOON, Problem, ProblemType, invalid_fields
from service.settings import Settings

if TYPE_CHECKING:
    import argon2

HASHER: web.AppKey["Hasher"] = web.AppKey("hasher")

WRONG_PASSWORD = ProblemType(403, "wrong_password", "The current password is wrong.")
REPLACED_MEANWHILE = "The password has just been changed, or the account is being deleted."
TOO_MANY_SIGN_INS = ProblemType(
    503, "too_many_sign_ins", "Too many sign-ins are in progress. Try again shortly.", RETRY_SOON
)

T = TypeVar("T")

PERSONAL_WORD_MIN_LENGTH = 3
# Of an email or name after NFKC, which can turn one character into eighteen.
PERSONAL_MAX_LENGTH = 256
_WORD = re.compile(r"\w+")
# Of the algorithm itself, with one lane (RFC 9106 §3.1).
ARGON2_MEMORY_MIN_KIB = 8
# Minimum of OWASP's Password Storage Cheat Sheet.
MEMORY_MIN_KIB = 19 * 1024
ITERATIONS_MIN = 2
# RFC 9106 §4, second recommended option. Every hashing thread holds this much memory, so beyond it
# more iterations are the better use of time.
MEMORY_ENOUGH_KIB = 64 * 1024


class _Job(NamedTuple):
    """A hash to compute on a thread, and the request's future for its result."""

    work: Callable[[], Any]
    done: asyncio.Future[Any]
    asked: float


@dataclass(slots=True)
class Hasher:
    """The hashing threads, and the queue for them, in which clients take turns.

    ``decoy`` is a hash that belongs to no account. ``work_kib`` is what a refused password costs,
    as memory times iterations: the cost of new hashes, or of the most expensive stored one so far.
    """

    argon2id: "argon2.PasswordHasher"
    executor: ThreadPoolExecutor
    queue_limit: int
    decoy: str
    workers: int
    work_kib: int
    # Threads in use. A thread is in use until it ends, even if its request has been cancelled.
    running: int = 0
    # Each client's waiting jobs; the first client is next.
    waiting: dict[Network | None, deque[_Job]] = field(default_factory=dict)
    # Called after each task: seconds it waited for a thread, seconds it ran.
    timers: list[Callable[[float, float], None]] = field(default_factory=list)

    @property
    def queued(self) -> int:
        return self.running + sum(map(len, self.waiting.values()))


def threads_per_process(settings: Settings) -> int:
    """Return how many threads hash in each process.

    By default, worker processes share the cores, so that they hash no more at once than there are.
    """
    return settings.password_hash_workers or max(1, (os.cpu_count() or 1) // settings.workers)


async def hasher_context(app: web.Application) -> AsyncIterator[None]:
    settings = app[SETTINGS]
    argon2id = _argon2id(settings.password_hash_memory_kib, settings.password_hash_iterations)
    workers = threads_per_process(settings)
    with ThreadPoolExecutor(workers, thread_name_prefix="argon2") as executor:
        loop = asyncio.get_running_loop()
        decoy = await loop.run_in_executor(executor, argon2id.hash, os.urandom(16))
        limit = settings.password_hash_queue
        app[HASHER] = Hasher(argon2id, executor, limit, decoy, workers, _work_kib(decoy))
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
    least, _ = password_lengths(password)
    if least < minimum:
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
    """Return whether the password matches; without a hash, it does not.

    Refusing it takes the same work whatever the hash, whether it is missing, unreadable or of
    another cost. Raises Problem 503 if the queue is full.
    """
    import argon2

    hasher = app[HASHER]
    verified_hash = password_hash or hasher.decoy
    work_kib = _work_kib(verified_hash)
    hasher.work_kib = max(hasher.work_kib, work_kib)

    def verify() -> bool:
        try:
            return hasher.argon2id.verify(verified_hash, _normalize(password))
        except (argon2.exceptions.VerificationError, argon2.exceptions.InvalidHashError):
            _spend(hasher, hasher.work_kib - work_kib)
            return False

    return await _on_executor(app, verify) and password_hash is not None


def _work_kib(password_hash: str) -> int:
    """Return memory times iterations of a hash, or 0 if it is unreadable."""
    import argon2

    try:
        parameters = argon2.extract_parameters(password_hash)
    except argon2.exceptions.InvalidHashError:
        return 0
    return parameters.memory_cost * parameters.time_cost


def _spend(hasher: Hasher, work_kib: int) -> None:
    """Compute a hash of this much work, with no more memory than new hashes use."""
    if work_kib < ARGON2_MEMORY_MIN_KIB:
        return
    iterations = math.ceil(work_kib / hasher.argon2id.memory_cost)
    memory_kib = max(ARGON2_MEMORY_MIN_KIB, work_kib // iterations)
    _argon2id(memory_kib, iterations).hash(b"")


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


def require_room(app: web.Application) -> None:
    """Raise Problem 503 if the queue has no room for this client.

    For handlers to call before they count an attempt.
    """
    _require_room(app[HASHER], _client())


async def _on_executor(app: web.Application, work: Callable[[], T]) -> T:
    """Run ``work`` on a thread once it is the client's turn. Raises Problem 503."""
    hasher, client = app[HASHER], _client()
    if longest := _require_room(hasher, client):
        _refuse(longest.pop())
    job = _Job(work, asyncio.get_running_loop().create_future(), time.perf_counter())
    hasher.waiting.setdefault(client, deque()).append(job)
    _start(hasher)
    try:
        result: T = await job.done
    except asyncio.CancelledError:
        _withdraw(hasher, client, job)
        raise
    return result


def _client() -> Network | None:
    context = REQUEST_CONTEXT.get(None)
    return network_of(context.request) if context and context.request else None


def _require_room(hasher: Hasher, client: Network | None) -> deque[_Job] | None:
    """Raise Problem 503 if the queue is full and no client has more than its share.

    If one has, return the longest backlog, whose newest job must give way. So one client may fill
    the queue, but cannot keep others out.
    """
    if hasher.queued < hasher.queue_limit:
        return None
    longest = max(hasher.waiting.values(), key=len, default=deque())
    if len(longest) <= len(hasher.waiting.get(client, ())) + 1:
        raise Problem(TOO_MANY_SIGN_INS)
    return longest


def _refuse(job: _Job) -> None:
    if not job.done.done():
        job.done.set_exception(Problem(TOO_MANY_SIGN_INS))


def _withdraw(hasher: Hasher, client: Network | None, job: _Job) -> None:
    """Remove the job of a cancelled request, unless a thread has it already."""
    jobs = hasher.waiting.get(client, ())
    if jobs and job in jobs:
        jobs.remove(job)
        if not jobs:
            del hasher.waiting[client]


def _start(hasher: Hasher) -> None:
    """Give each free thread a job, taking one from each client in turn."""
    loop = asyncio.get_running_loop()
    while hasher.waiting and hasher.running < hasher.workers:
        client = next(iter(hasher.waiting))
        jobs = hasher.waiting.pop(client)
        job = jobs.popleft()
        if jobs:
            hasher.waiting[client] = jobs  # behind all other clients
        hasher.running += 1
        thread = loop.run_in_executor(hasher.executor, _run, job)
        thread.add_done_callback(functools.partial(_end, hasher, job))


def _run(job: _Job) -> tuple[Any, float, float]:
    """Return the result, the seconds the job waited and the seconds it took."""
    started = time.perf_counter()
    result = job.work()
    return result, started - job.asked, time.perf_counter() - started


def _end(hasher: Hasher, job: _Job, thread: asyncio.Future[tuple[Any, float, float]]) -> None:
    """Free the thread, and pass the result on to the request if it still waits."""
    hasher.running -= 1
    _start(hasher)
    if error := thread.exception():
        if not job.done.done():
            job.done.set_exception(error)
        return
    result, waited_s, took_s = thread.result()
    for timer in hasher.timers:
        timer(waited_s, took_s)
    if not job.done.done():
        job.done.set_result(result)
