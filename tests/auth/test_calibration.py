"""Calibrating password hashes: for machines of any speed, each known exactly."""

import pytest

from service.auth.passwords import ITERATIONS_MIN, MEMORY_ENOUGH_KIB, MEMORY_MIN_KIB, calibrate


@pytest.mark.parametrize(
    ("mib_per_ms", "target_ms", "expected"),
    [
        # 19 MiB twice take 38 ms: as much memory as fits, which a hash goes through twice.
        (1, 100, (50 * 1024, 2, 100)),
        # 64 MiB are enough, and the rest goes into iterations: 64 ms each, or 6.4.
        (1, 400, (MEMORY_ENOUGH_KIB, 6, 384)),
        (10, 100, (MEMORY_ENOUGH_KIB, 15, 96)),
        # However slow the machine.
        (0.1, 100, (MEMORY_MIN_KIB, ITERATIONS_MIN, 380)),
        (1, 38, (MEMORY_MIN_KIB, ITERATIONS_MIN, 38)),
    ],
)
def test_a_hash_comes_as_near_below_the_target_as_it_gets(
    mib_per_ms: float, target_ms: float, expected: tuple[int, int, float]
) -> None:
    def measure(memory_kib: int, iterations: int) -> float:
        return memory_kib / 1024 * iterations / mib_per_ms

    memory_kib, iterations, took_ms = calibrate(target_ms, measure)
    assert (memory_kib, iterations, round(took_ms, 6)) == expected


def test_a_machine_that_got_slower_meanwhile_gets_fewer_iterations() -> None:
    """The last measurement counts, not what the first promised."""
    measured = []

    def measure(memory_kib: int, iterations: int) -> float:
        measured.append((memory_kib, iterations))
        speed = 10 if len(measured) < 3 else 8
        return memory_kib / 1024 * iterations / speed

    memory_kib, iterations, took_ms = calibrate(100, measure)
    assert (memory_kib, iterations) == (MEMORY_ENOUGH_KIB, 12)
    assert took_ms == 96
