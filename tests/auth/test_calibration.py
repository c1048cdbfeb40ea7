"""Calibration of password hashes, on simulated machines of known speed."""

import pytest

from service.auth.passwords import ITERATIONS_MIN, MEMORY_ENOUGH_KIB, MEMORY_MIN_KIB, calibrate


@pytest.mark.parametrize(
    ("mib_per_ms", "target_ms", "expected"),
    [
        # As much memory as the time allows, at the fewest iterations.
        (1, 100, (50 * 1024, 2, 100)),
        # Memory is at its maximum, and the remaining time goes into iterations.
        (1, 400, (MEMORY_ENOUGH_KIB, 6, 384)),
        (10, 100, (MEMORY_ENOUGH_KIB, 15, 96)),
        # The minimum, however slow the machine.
        (0.1, 100, (MEMORY_MIN_KIB, ITERATIONS_MIN, 380)),
        (1, 38, (MEMORY_MIN_KIB, ITERATIONS_MIN, 38)),
    ],
)
def test_calibration_comes_as_close_to_the_target_as_possible(
    mib_per_ms: float, target_ms: float, expected: tuple[int, int, float]
) -> None:
    def measure(memory_kib: int, iterations: int) -> float:
        return memory_kib / 1024 * iterations / mib_per_ms

    memory_kib, iterations, took_ms = calibrate(target_ms, measure)
    assert (memory_kib, iterations, round(took_ms, 6)) == expected


def test_machine_that_slows_down_gets_fewer_iterations() -> None:
    """The last measurement decides, not the first."""
    measured = []

    def measure(memory_kib: int, iterations: int) -> float:
        measured.append((memory_kib, iterations))
        speed = 10 if len(measured) < 3 else 8
        return memory_kib / 1024 * iterations / speed

    memory_kib, iterations, took_ms = calibrate(100, measure)
    assert (memory_kib, iterations) == (MEMORY_ENOUGH_KIB, 12)
    assert took_ms == 96
