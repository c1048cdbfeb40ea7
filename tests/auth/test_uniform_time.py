"""Sign-in takes the same time for whatever is wrong with it."""

import statistics
import time
from typing import Any

from tests.support.clients import Client, StartApp
from tests.support.factories import PASSWORD, register

SAMPLES = 25


async def test_every_refusal_takes_the_same_time(start_app: StartApp, conn: Any) -> None:
    """Medians of interleaved samples, so that what else the machine does falls on all alike.

    A hash that was left out, or computed twice, would make a factor of two and more.
    """
    client = await start_app(
        require_email_verification=True,
        password_hash_memory_kib=19 * 1024,
        password_hash_iterations=2,
    )
    emails = {kind: f"{kind}@example.com" for kind in ("wrong", "suspended", "unverified")}
    for email in emails.values():
        body = {"email": email, "password": PASSWORD}
        assert (await client.post("/api/v1/auth/register", json=body)).status == 202
    await conn.execute("update users set email_verified_at = now() where email !~ 'unverified'")
    await conn.execute("update users set status = 'suspended' where email ~ 'suspended'")
    emails["unknown"] = "nobody@example.com"
    bodies = set()
    times: dict[str, list[float]] = {kind: [] for kind in emails}
    for _ in range(SAMPLES):
        for kind, email in emails.items():
            password = "not the password of it" if kind == "wrong" else PASSWORD
            started = time.perf_counter()
            response = await client.post(
                "/api/v1/auth/login", json={"email": email, "password": password}
            )
            times[kind].append(time.perf_counter() - started)
            answer = await response.json(content_type=None)
            del answer["request_id"]
            bodies.add((response.status, str(answer)))
    assert len(bodies) == 1, bodies
    medians = {kind: statistics.median(taken) for kind, taken in times.items()}
    assert max(medians.values()) < 1.5 * min(medians.values()), medians


async def test_asking_for_a_link_takes_the_same_time(client: Client) -> None:
    account = await register(client)
    times: dict[str, list[float]] = {account.profile["email"]: [], "nobody@example.com": []}
    for _ in range(10):
        for email, taken in times.items():
            started = time.perf_counter()
            await client.post("/api/v1/auth/password/forgot", json={"email": email})
            taken.append(time.perf_counter() - started)
    medians = [statistics.median(taken) for taken in times.values()]
    assert max(medians) < 1.2 * min(medians), medians
