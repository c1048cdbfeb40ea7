"""Runs the whole setup of this directory on one machine: ``make ha``.

Three nodes, each with etcd, Patroni, PostgreSQL and PgBouncer, then HAProxy, and two replicas of
the service. Each node is a process namespace of its own, so that killing its first process is like
losing a machine. Everything listens on free ports of 127.0.0.1, and ends with this process.
"""

import base64
import contextlib
import json
import os
import pwd
import secrets
import shutil
import signal
import socket
import string
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import psycopg
import psycopg.sql

from service.embedded.launcher import chown_to, find_account, launcher

T = TypeVar("T")
HERE = Path(__file__).parent
ROOT = HERE.parents[1]
ADDRESS = "127.0.0.1"
NODES = ("node1", "node2", "node3")
REPLICAS = 2
NODE_PORTS = ("ETCD_PORT", "ETCD_PEER_PORT", "PATRONI_PORT", "POSTGRES_PORT", "PGBOUNCER_PORT")
PASSWORDS = ("PATRONI_PASSWORD", "POSTGRES_PASSWORD", "REPLICATION_PASSWORD", "REWIND_PASSWORD")
START_S = 180
LOOK_EVERY_S = 0.05
AWAY_S = 60
DEBIAN = "apt install --no-install-recommends patroni etcd-server haproxy pgbouncer postgresql"
# PgBouncer cannot set these for a session (docs/deployment.md).
LIMITS = {
    "statement_timeout": "3s",
    "lock_timeout": "2s",
    "idle_in_transaction_session_timeout": "5s",
}


class HaError(Exception):
    """Something that a person has to mend before the cluster can run."""


@dataclass
class Node:
    """One machine of the cluster, and its first process if it runs."""

    name: str
    directory: Path
    ports: Mapping[str, int]
    values: Mapping[str, str]
    process: "subprocess.Popen[bytes] | None" = None

    def patroni(self, path: str, body: object = None, method: str | None = None) -> Any:
        """Ask Patroni for ``path``. Return the JSON, or None if the status is not 200."""
        credentials = f"patroni:{self.values['PATRONI_PASSWORD']}".encode()
        authorization = f"Basic {base64.b64encode(credentials).decode()}"
        return fetch(
            f"http://{ADDRESS}:{self.ports['PATRONI_PORT']}{path}", body, method, authorization
        )

    def leads_etcd(self) -> bool:
        status = fetch(f"http://{ADDRESS}:{self.ports['ETCD_PORT']}/v3/maintenance/status", {})
        return bool(status) and status["leader"] == status["header"]["member_id"]

    def is_standby(self) -> bool:
        """Whether it streams from the primary. Patroni's check allows for a lag of 1 MiB."""
        return self.patroni("/replica?lag=1MB") is not None


@dataclass
class Cluster:
    """Three nodes, HAProxy, and replicas of the service."""

    directory: Path
    nodes: list[Node]
    replica_ports: list[int]
    url: str
    """The service, through HAProxy."""
    database_url: str
    """The database, through HAProxy and the primary's PgBouncer."""
    password: str = field(repr=False)
    """That of the service's role."""
    account: pwd.struct_passwd | None
    """The user that runs all but HAProxy and the service, if this process is root."""

    def primary(self) -> Node | None:
        return next((node for node in self.nodes if node.patroni("/primary")), None)

    def standbys(self) -> list[Node]:
        return [node for node in self.nodes if node.is_standby()]

    def await_primary(self) -> Node:
        return until(self.primary, "no node became primary")

    def await_standbys(self) -> None:
        """Wait until all other nodes follow the primary, and one synchronously if it has to."""
        wanted = len(self.nodes) - 1
        until(lambda: len(self.standbys()) == wanted, "the standbys do not follow the primary")
        synchronous = self.await_primary().patroni("/config")["synchronous_mode"]
        until(
            lambda: any(node.patroni("/synchronous") for node in self.nodes) == synchronous,
            f"synchronous_mode is not {synchronous}",
        )

    def configure(self, **changes: object) -> None:
        """Change Patroni's configuration in etcd, as ``patronictl edit-config`` does."""
        self.await_primary().patroni("/config", changes, "PATCH")
        self.await_standbys()

    def start(self, node: Node) -> None:
        """Start all programs of a node, as at its first start or after it was lost."""
        as_user = ""
        if self.account:
            user, group = self.account.pw_uid, self.account.pw_gid
            as_user = f"setpriv --reuid={user} --regid={group} --clear-groups"
        programs = (
            f"{as_user} etcd --config-file etcd.yml >etcd.log 2>&1",
            f"{as_user} patroni patroni.yml >>patroni.log 2>&1",
            f"{as_user} pgbouncer pgbouncer.ini >pgbouncer.log 2>&1",
        )
        script = "".join(f"{program} &\n" for program in programs) + "wait\n"
        # Without root, a process namespace needs a user namespace too.
        own = [] if self.account else ["--user", "--map-current-user"]
        command = ["unshare", *own, "--pid", "--fork", "--kill-child", "--mount-proc"]
        node.process = spawn([*command, "sh", "-c", script], node.directory)

    def lose(self, node: Node) -> None:
        """Kill all programs of a node at once, as if its machine had lost power."""
        if node.process:
            node.process.kill()
            node.process.wait()
            node.process = None

    def connect(self, node: Node, database: str = "postgres") -> "psycopg.Connection[Any]":
        """Connect to a node's PostgreSQL itself as its superuser."""
        return psycopg.connect(
            host=ADDRESS,
            port=node.ports["POSTGRES_PORT"],
            dbname=database,
            user="postgres",
            password=node.values["POSTGRES_PASSWORD"],
            autocommit=True,
            connect_timeout=10,
        )


def fetch(
    url: str, body: object = None, method: str | None = None, authorization: str | None = None
) -> Any:
    """Return a response's JSON, or None without a response or if its status is not 200."""
    headers = {"Content-Type": "application/json"}
    if authorization:
        headers["Authorization"] = authorization
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=2) as response:
            return json.loads(response.read())
    except (OSError, ValueError):
        return None


def until(condition: Callable[[], T | None], failure: str) -> T:
    """Return the first true value of ``condition``."""
    deadline = time.monotonic() + START_S
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise HaError(f"{failure} within {START_S} s")
        time.sleep(LOOK_EVERY_S)
    return value


def spawn(
    command: list[str], directory: Path, log: Path | None = None, **variables: str
) -> "subprocess.Popen[bytes]":
    """Start a program that the kernel kills when this process ends."""
    with (log or Path(os.devnull)).open("ab") as output:
        return subprocess.Popen(
            [*launcher(signal.SIGKILL, None), found(command[0]), *command[1:]],
            cwd=directory,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env={"PATH": SEARCH, "LC_ALL": "C.UTF-8", "TZ": "UTC", **variables},
            # Ctrl-C reaches only this process, which then ends the others.
            start_new_session=True,
        )


SEARCH = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"


def found(program: str) -> str:
    path = shutil.which(program, path=SEARCH)
    if path is None:
        raise HaError(f"{program} is not installed. On Debian: {DEBIAN}")
    return path


def postgres_bin() -> Path:
    versions = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda p: p.parts[-3])
    if not versions:
        raise HaError(f"PostgreSQL is not in /usr/lib/postgresql. On Debian: {DEBIAN}")
    return versions[-1].parent


@contextlib.contextmanager
def reserved_ports(count: int) -> Iterator[Iterator[int]]:
    """Reserve ports: bound without listening, so that only programs that name them get them."""
    with contextlib.ExitStack() as stack:
        ports = []
        for _ in range(count):
            holder = stack.enter_context(socket.socket())
            holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            holder.bind((ADDRESS, 0))
            ports.append(holder.getsockname()[1])
        yield iter(ports)


def fill(template: str, values: Mapping[str, str]) -> str:
    return string.Template((HERE / template).read_text()).substitute(values)


def configure(directory: Path, ports: Iterator[int]) -> Cluster:
    """Write the configuration of all programs, with free ports and new passwords."""
    account = find_account() if os.geteuid() == 0 else None
    password = secrets.token_urlsafe()
    of_nodes = {name: {port: next(ports) for port in NODE_PORTS} for name in NODES}
    shared = {
        **{name: secrets.token_urlsafe() for name in PASSWORDS},
        "ADDRESS": ADDRESS,
        "NETWORK": f"{ADDRESS}/32",
        "POSTGRES_BIN": str(postgres_bin()),
        "ETCD_HOSTS": ",".join(f"{ADDRESS}:{of['ETCD_PORT']}" for of in of_nodes.values()),
        "ETCD_CLUSTER": ",".join(
            f"{name}=http://{ADDRESS}:{of['ETCD_PEER_PORT']}" for name, of in of_nodes.items()
        ),
    }
    nodes = []
    for name, numbers in of_nodes.items():
        home = directory / name
        home.mkdir()
        values = {**shared, **{port: str(number) for port, number in numbers.items()}}
        nodes.append(Node(name, home, numbers, {**values, "NODE": name, "DATA": str(home)}))
        for template in ("etcd.yml", "patroni.yml", "pgbouncer.ini"):
            (home / template).write_text(fill(template, nodes[-1].values))
        (home / "userlist.txt").write_text(f'"shinkei" "{password}"\n')
        if account:
            chown_to(home, account)
        home.chmod(0o700)
    database_port, service_port, *replica_ports = ports
    balanced = {
        "HAPROXY_ADDRESS": ADDRESS,
        "DATABASE_PORT": str(database_port),
        "SERVICE_PORT": str(service_port),
    }
    for number, node in enumerate(nodes, 1):
        for key in ("ADDRESS", "PATRONI_PORT", "PGBOUNCER_PORT"):
            balanced[f"{key}_{number}"] = node.values[key]
    for number, port in enumerate(replica_ports, 1):
        balanced[f"REPLICA_{number}"] = f"{ADDRESS}:{port}"
    (directory / "haproxy.cfg").write_text(fill("haproxy.cfg", balanced))
    url = f"http://{ADDRESS}:{service_port}"
    database_url = f"postgresql://shinkei:{password}@{ADDRESS}:{database_port}/shinkei"
    return Cluster(directory, nodes, replica_ports, url, database_url, password, account)


@contextlib.contextmanager
def configured() -> Iterator[Cluster]:
    """Reserve ports and write the configuration of a cluster, for the duration of the block."""
    count = len(NODES) * len(NODE_PORTS) + 2 + REPLICAS
    with (
        tempfile.TemporaryDirectory(prefix="shinkei-ha-", ignore_cleanup_errors=True) as directory,
        reserved_ports(count) as ports,
    ):
        Path(directory).chmod(0o755)
        yield configure(Path(directory), ports)


@contextlib.contextmanager
def running(**variables: str) -> Iterator[Cluster]:
    """Run a cluster, and replicas of the service with these variables, during the block."""
    for program in ("unshare", "etcd", "patroni", "pgbouncer", "haproxy"):
        found(program)
    with configured() as cluster, contextlib.ExitStack() as stack:

        def start(command: list[str], log: str, **of_process: str) -> None:
            log_path = cluster.directory / log
            process = spawn(command, cluster.directory, log_path, **of_process)
            stack.callback(process.wait)
            stack.callback(process.kill)

        for node in cluster.nodes:
            stack.callback(cluster.lose, node)
            cluster.start(node)
        create_database(cluster, cluster.await_primary())
        cluster.await_standbys()
        start(["haproxy", "-db", "-f", "haproxy.cfg"], "haproxy.log")
        shinkei = [sys.executable, "-m", "service"]
        shared = {
            "PYTHONPATH": str(ROOT),
            "DATABASE_URL": cluster.database_url,
            "DB_PGBOUNCER": "true",
            "DB_CONNECT_TIMEOUT_S": "60",
            "MIGRATE_ON_START": "true",
            "SECRET_KEY": secrets.token_urlsafe(),
            "TRUSTED_PROXIES": ADDRESS,
            "PUBLIC_ORIGIN": cluster.url,
            **variables,
        }
        for number, port in enumerate(cluster.replica_ports, 1):
            name = f"replica{number}"
            data_dir = str(cluster.directory / name)
            start([*shinkei, "serve"], f"{name}.log", PORT=str(port), DATA_DIR=data_dir, **shared)
        until(lambda: fetch(f"{cluster.url}/health/ready"), "the service is not ready")
        yield cluster


def create_database(cluster: Cluster, primary: Node) -> None:
    """Create the role and the database as docs/deployment.md does."""
    password = psycopg.sql.Literal(cluster.password)
    with cluster.connect(primary) as conn:
        conn.execute(psycopg.sql.SQL("create role shinkei login password {}").format(password))
        for name, value in LIMITS.items():
            conn.execute(f"alter role shinkei set {name} = '{value}'")
        conn.execute(
            "create database shinkei owner shinkei template template0 encoding 'UTF8'"
            " locale_provider libc lc_collate 'C' lc_ctype 'C.UTF-8'"
        )


def bring_back(cluster: Cluster) -> None:
    """Look for lost nodes, and start them again after AWAY_S, as when a machine is repaired."""
    time.sleep(1)
    for node in cluster.nodes:
        if node.process and node.process.poll() is not None:
            print(f"{node.name} is lost, and comes back in {AWAY_S} s", flush=True)
            time.sleep(AWAY_S)
            cluster.start(node)


def main() -> None:
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        print("Starting three nodes, which takes half a minute", flush=True)
        with running() as cluster:
            print(f"The service: {cluster.url}/docs")
            for node in cluster.nodes:
                role = "primary" if node is cluster.primary() else "standby"
                print(f"{node.name}, {role}: kill -9 {node.process and node.process.pid} loses it")
            print(f"patronictl -c {cluster.nodes[0].directory}/patroni.yml list")
            print(f"Logs are in {cluster.directory}. Ctrl-C stops everything.", flush=True)
            while True:
                bring_back(cluster)
    except HaError as error:
        sys.exit(f"ha: {error}")
    except KeyboardInterrupt:
        sys.exit(0)


if __name__ == "__main__":
    main()
