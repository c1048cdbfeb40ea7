"""``shinkei doctor`` on DATABASE_DIRECT_URL."""

import dataclasses

import pytest

from service.doctor.checkup import examine
from service.doctor.findings import Finding
from service.settings import Database
from tests.support.processes import reserved_port, url_of

CHEAP = {"PASSWORD_HASH_MEMORY_KIB": "8", "PASSWORD_HASH_ITERATIONS": "1"}


def diagnose(database: Database, check: str, url: str) -> Finding:
    """Return the only finding of this check."""
    variable = f"DATABASE_{check.upper()}_URL"
    findings = examine({**CHEAP, **url_of(database), variable: url})
    (found,) = [each for each in findings if each.check == check]
    return found


def url_to(database: Database, query: str = "") -> str:
    return url_of(database)["DATABASE_URL"] + query


def test_direct_url_to_the_same_database_is_fine(database: Database) -> None:
    found = diagnose(database, "direct", url_to(database))
    assert (found.status, found.fix) == ("ok", "")
    assert f"database {database.name}, is the same database" in found.detail


def test_direct_url_to_another_database_is_reported(
    database: Database, empty_database: Database
) -> None:
    found = diagnose(database, "direct", url_to(empty_database))
    assert found.status == "fail"
    assert f"database {empty_database.name}, is another database" in found.detail
    assert found.fix.startswith("Correct DATABASE_DIRECT_URL")


def test_direct_url_to_a_read_only_database_is_reported(database: Database) -> None:
    read_only = "?options=-c%20default_transaction_read_only%3Don"
    found = diagnose(database, "direct", url_to(database, read_only))
    assert found.status == "fail"
    assert found.detail.endswith("is read-only")


@pytest.mark.parametrize(("check", "status"), [("direct", "fail")])
def test_unreachable_url_is_explained(database: Database, check: str, status: str) -> None:
    with reserved_port() as port:
        nowhere = dataclasses.replace(database, hosts=(("127.0.0.1", port),))
        found = diagnose(database, check, url_to(nowhere))
    assert found.status == status
    assert found.detail.endswith("connection refused")
    assert f"DATABASE_{check.upper()}_URL" in found.fix
