"""``shinkei doctor`` on DATABASE_DIRECT_URL and DATABASE_REPLICA_URL."""

import dataclasses
from collections.abc import Iterator

import pytest

from service.doctor.checkup import examine
from service.doctor.findings import Finding
from service.settings import Database
from tests.support.processes import connect, reserved_port, url_of
from tests.support.replicas import Pair, replay_paused, running_pair

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


@pytest.mark.parametrize(("check", "status"), [("direct", "fail"), ("replica", "warn")])
def test_unreachable_url_is_explained(database: Database, check: str, status: str) -> None:
    with reserved_port() as port:
        nowhere = dataclasses.replace(database, hosts=(("127.0.0.1", port),))
        found = diagnose(database, check, url_to(nowhere))
    assert found.status == status
    assert found.detail.endswith("connection refused")
    assert f"DATABASE_{check.upper()}_URL" in found.fix


def test_replica_that_is_the_primary_is_reported(database: Database) -> None:
    found = diagnose(database, "replica", url_to(database))
    assert found.status == "warn"
    assert found.detail.endswith("is not used: it is not a standby")


def test_replica_of_another_database_is_reported(
    database: Database, empty_database: Database
) -> None:
    found = diagnose(database, "replica", url_to(empty_database))
    assert found.status == "warn"
    assert found.fix == "Correct DATABASE_REPLICA_URL."


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    with running_pair(tmp_path_factory.mktemp("servers")) as pair:
        yield pair


@pytest.mark.slow
def test_standby_is_fine_if_it_has_caught_up(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.db.replica.CATCH_UP_S", 4)
    found = diagnose(pair.primary.database, "replica", url_to(pair.standby.database))
    assert (found.status, found.fix) == ("ok", "")
    assert "is a standby of this database, which had replayed all within" in found.detail


@pytest.mark.slow
def test_standby_that_lags_is_reported(pair: Pair) -> None:
    with replay_paused(pair.standby.database):
        with connect(pair.primary.database) as conn:
            conn.execute("create table written as select 1 as a")
        found = diagnose(pair.primary.database, "replica", url_to(pair.standby.database))
    assert found.status == "warn"
    assert found.detail.endswith("is not used: it is behind the primary")


@pytest.mark.slow
def test_database_that_is_a_standby_is_reported_alone(pair: Pair) -> None:
    findings = examine(
        {
            **CHEAP,
            **url_of(pair.standby.database),
            "DATABASE_REPLICA_URL": url_to(pair.standby.database),
        }
    )
    assert [each.detail for each in findings if each.check in ("replica", "database")][1:] == [
        "it is a standby, which accepts no writes"
    ]
