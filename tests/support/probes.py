"""Relaxed limits of the probes, for tests that are not about them."""

import pytest

from service.health import handlers as health
from tests.support.waiting import DEADLINE_S


def make_patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Raise the deadlines of probes for busy machines, and disable their cache."""
    for name in ("DEADLINE_S", "CONNECT_TIMEOUT_S", "COMMAND_TIMEOUT_S"):
        monkeypatch.setattr(health, name, DEADLINE_S)
    monkeypatch.setattr(health, "CACHE_S", -1)
