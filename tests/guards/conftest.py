"""Mails that arrive at once."""

import pytest


@pytest.fixture(autouse=True)
def _quick(mail_at_once: None) -> None:
    pass
