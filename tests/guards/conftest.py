"""Fixtures for tests that wait for mail."""

import pytest


@pytest.fixture(autouse=True)
def _quick(mail_at_once: None) -> None:
    pass
