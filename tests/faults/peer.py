"""The same faults against a peer of the benchmarks, Fastify with postgres.js, on its PATCH alone.

    .venv/bin/python -m tests.faults.peer

Needs Node.js and what ``make bench`` installs. Prints a line of JSON for each run.
"""

import asyncio
import json
import tempfile
import uuid
from dataclasses import asdict
from pathlib import Path

from joserfc import jwt
from joserfc.jwk import OctKey

from tests.faults import of_networks, of_postgres
from tests.faults.load import PROBE_EVERY_S, WRITERS, Load, Writer
from tests.faults.run import Fault, Report, Subject, run
from tests.faults.stage import Postgres, make_template
from tests.support import waiting
from tests.support.clients import ROOT, SECRET_KEY
from tests.support.factories import bearer

# A peer that serves nothing for so long is not waited for.
PATIENCE_S = 20
SERVER = ROOT / "benchmarks/peers/fastify/server.js"
# These are about what a peer does not have.
_OURS = ("migrate", "migration", "serialized", "deadlock", "worlds")
FAULTS: list[Fault] = [
    fault
    for fault in (*of_postgres.FAULTS, *of_networks.FAULTS)
    if "direct" in fault.modes and not any(word in fault.name for word in _OURS)
]


class PeerLoad(Load):
    """Clients of the peer: writers, which only count the names of their accounts up, and a reader.

    Accounts are rows that the peer finds, and tokens what it accepts.
    """

    api = ""
    has_readiness = False

    async def set_up(self, postgres: Postgres) -> None:
        for number in range(WRITERS):
            id_ = str(uuid.uuid4())
            email = f"writer{number}@example.com"
            await postgres.execute(
                "insert into users (id, email, email_folded, name, password_hash)"
                f" values ('{id_}', '{email}', '{email}', '', '')"
            )
            token = jwt.encode({"alg": "HS256"}, {"sub": id_}, OctKey.import_key(SECRET_KEY))
            self.writers.append(Writer(email, bearer(token), "", ""))

    def start(self) -> None:
        for writer in self.writers:
            self.repeat(self.pause_s, self.rename, writer)
        self.repeat(self.pause_s, self.read)
        self.repeat(PROBE_EVERY_S, self.probe, "live")


PEER = Subject(("node", str(SERVER)), PeerLoad, is_peer=True)


def main() -> None:
    waiting.DEADLINE_S = PATIENCE_S
    with tempfile.TemporaryDirectory(prefix="shinkei-faults-") as directory:
        template = make_template(Path(directory))
        for fault in FAULTS:
            try:
                report = asyncio.run(run(fault, "direct", template, PEER))
            except AssertionError as error:
                # It had not recovered when the harness lost its patience.
                report = Report(fault.name, "direct", recovery_s=PATIENCE_S)
                report.violations = [f"{error}"[:300]]
            print(json.dumps(asdict(report)), flush=True)


if __name__ == "__main__":
    main()
