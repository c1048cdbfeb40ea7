"""The files in deploy/ha, filled in as ``make ha`` does, and checked by the programs if installed."""

import configparser
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from deploy.ha import cluster as ha
from tests.support.manifests import DEPLOY, GUIDE
from tests.support.processes import run_command
from tests.support.programs import require


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[ha.Cluster]:
    monkeypatch.setattr(ha, "postgres_bin", lambda: Path("/usr/lib/postgresql/15/bin"))
    with ha.configured() as cluster:
        yield cluster


def test_every_variable_of_the_files_has_a_value(cluster: ha.Cluster) -> None:
    files = [path for path in cluster.directory.rglob("*") if path.is_file()]
    assert len(files) == 1 + 4 * len(cluster.nodes)
    assert [path for path in files if "${" in path.read_text()] == []


def test_guide_explains_every_variable() -> None:
    section = GUIDE.partition("## High availability")[2].partition("\n## ")[0]
    used = {
        re.sub("_[23]$", "_1", name) if not name.startswith("REPLICA") else name
        for path in (DEPLOY / "ha").iterdir()
        if path.is_file()
        for name in re.findall(r"\$\{(\w+)\}", path.read_text())
    }
    assert used - set(re.findall(r"`(\w+)`", section)) == set()


def test_files_with_passwords_are_private(cluster: ha.Cluster) -> None:
    assert {node.directory.stat().st_mode & 0o777 for node in cluster.nodes} == {0o700}


def test_timeouts_of_patroni_fit_together(cluster: ha.Cluster) -> None:
    for node in cluster.nodes:
        dcs = yaml.safe_load((node.directory / "patroni.yml").read_text())["bootstrap"]["dcs"]
        assert dcs["loop_wait"] + 2 * dcs["retry_timeout"] <= dcs["ttl"]


def test_each_node_has_ports_of_its_own(cluster: ha.Cluster) -> None:
    ports = [port for node in cluster.nodes for port in node.ports.values()]
    assert len(set(ports)) == len(ports)


def test_haproxy_finds_the_primary_by_patroni_and_sends_to_its_pgbouncer(
    cluster: ha.Cluster,
) -> None:
    text = (cluster.directory / "haproxy.cfg").read_text()
    servers = re.findall(r"server (node\d) 127.0.0.1:(\d+) port (\d+)", text)
    assert servers == [
        (node.name, node.values["PGBOUNCER_PORT"], node.values["PATRONI_PORT"])
        for node in cluster.nodes
    ]
    assert "option httpchk OPTIONS /primary" in text


def test_pgbouncer_sends_to_the_postgresql_beside_it(cluster: ha.Cluster) -> None:
    for node in cluster.nodes:
        parser = configparser.ConfigParser()
        parser.read_string((node.directory / "pgbouncer.ini").read_text())
        port = node.ports["POSTGRES_PORT"]
        assert parser["databases"]["shinkei"] == f"host=127.0.0.1 port={port}"
        assert parser["pgbouncer"]["pool_mode"] == "transaction"


def test_haproxy_accepts_its_file(cluster: ha.Cluster) -> None:
    program = require("haproxy", "/usr/sbin/haproxy")
    checked = run_command(program, "-c", "-f", str(cluster.directory / "haproxy.cfg"))
    assert checked.returncode == 0, checked.stderr + checked.stdout
