"""Mails that arrive at once."""

import pytest

from service.mail import sender


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sender looks for mail many times a second."""
    monkeypatch.setattr(sender, "POLL_S", 0.02)
