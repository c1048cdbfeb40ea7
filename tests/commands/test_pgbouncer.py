"""Every command behind PgBouncer, whose only connection all clients take turns with."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from service.settings import Database
from tests.support.clients import NEW_KEY
from tests.support.factories import PASSWORD
from tests.support.pgbouncer import behind_pgbouncer
from tests.support.processes import call, serving, until_healthy, url_of
from tests.support.shell import run_all

pytestmark = pytest.mark.slow


@pytest.fixture
def variables(database: Database) -> Iterator[dict[str, str]]:
    with behind_pgbouncer(database, default_pool_size=1) as through:
        yield {**url_of(through), "DB_PGBOUNCER": "true"}


def test_every_command_works_twice(variables: dict[str, str], tmp_path: Path) -> None:
    one_round = [
        "migrate --rollback 1",
        "migrate",
        "migrate --status",
        "create-admin --email {n}@example.com",
        "create-admin --email {n}@example.com --promote",
        "users create ada{n}@example.com --mail-link",
        "users set-role ada{n}@example.com support",
        "users suspend ada{n}@example.com --reason x",
        "users reinstate ada{n}@example.com",
        "users reset-password ada{n}@example.com",
        "users delete ada{n}@example.com",
        "users show {n}@example.com",
        "users list --q example --all",
        "audit list --subject {n}@example.com",
        "keys rotate",
        "keys list",
        "doctor",
    ]
    failed = []
    for n in (1, 2):
        # In a process of its own: in one process, asyncpg gives no name to two statements.
        commands = [command.format(n=n) for command in one_round]
        passwords = [PASSWORD if "--email" in command else "" for command in commands]
        results = run_all(tmp_path, variables, *commands, read=passwords)
        failed += [(*each, n) for each in zip(commands, results, strict=True) if each[1].code]
    assert failed == []


def test_sealed_values_are_moved_to_a_new_key(variables: dict[str, str], tmp_path: Path) -> None:
    (created,) = run_all(tmp_path, variables, "users create ada@example.com --mail-link")
    assert created.code == 0
    keys = {"SECRET_KEY": NEW_KEY, "SECRET_KEY_PREVIOUS": variables["SECRET_KEY"]}
    for moved in ("1", "0"):
        (resealed,) = run_all(tmp_path, {**variables, **keys}, "keys reseal")
        assert ["mail", moved, "0"] in [line.split("\t") for line in resealed.stdout.splitlines()]


def test_serve_starts_again_and_beside_another(variables: dict[str, str], tmp_path: Path) -> None:
    def register(url: str, name: str) -> int:
        account = {"email": f"{name}@example.com", "password": PASSWORD}
        return call(f"{url}/api/v1/auth/register", account)[0]

    with serving(tmp_path, **variables) as first, serving(tmp_path, **variables) as second:
        for name, served in {"first": first, "second": second}.items():
            until_healthy(served.url)
            assert register(served.url, name) == 201
    with serving(tmp_path, **variables) as third:
        until_healthy(third.url)
        assert register(third.url, "third") == 201
        assert '"level":"error"' not in third.stderr_after()


def test_serve_migrates_when_it_starts(variables: dict[str, str], tmp_path: Path) -> None:
    (rolled_back,) = run_all(tmp_path, variables, "migrate --rollback 3")
    assert rolled_back.code == 0
    variables["MIGRATE_ON_START"] = "true"
    with serving(tmp_path, **variables) as first, serving(tmp_path, **variables) as second:
        until_healthy(first.url)
        until_healthy(second.url)
