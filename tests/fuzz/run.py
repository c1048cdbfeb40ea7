"""``make fuzz``: run schemathesis with every check on a service with its own PostgreSQL.

    .venv/bin/python -m tests.fuzz.run [--seconds 240] [options of schemathesis run …]

Starts the service, creates an administrator, lets schemathesis try what the API's description
allows and forbids, and stops the service. Fails if schemathesis finds anything or the service logs
an error.
"""

import argparse
import contextlib
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.support.clients import ROOT
from tests.support.processes import started
from tests.support.waiting import DEADLINE_S, eventually_blocking

HERE = Path(__file__).parent
SHINKEI = ROOT / ".venv" / "bin" / "shinkei"
SCHEMATHESIS = ROOT / ".venv-fuzz" / "bin" / "schemathesis"
ADMIN_EMAIL = "root@example.com"
# schemathesis finishes its current work and its report after its time is up.
GRACE_S = 300


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=int, default=240, help="how long to run (default 240)")
    arguments, options = parser.parse_known_args()
    directory = Path(tempfile.mkdtemp(prefix="shinkei-fuzz-"))
    try:
        with serving(directory) as environment:
            found = subprocess.run(
                [
                    *(SCHEMATHESIS, "--config-file", HERE / "schemathesis.toml", "run"),
                    f"{environment['SHINKEI_URL']}/openapi.json",
                    *("--max-time", str(arguments.seconds), *options),
                ],
                env=environment,
                cwd=directory,
                check=False,
                timeout=arguments.seconds + GRACE_S,
            ).returncode
        errors = [
            line
            for line in (directory / "log").read_text().splitlines()
            if '"level":"error"' in line
        ]
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    for line in errors[:10]:
        print(f"the service logged an error: {line}")
    return found or bool(errors)


@contextlib.contextmanager
def serving(directory: Path) -> Iterator[dict[str, str]]:
    """Run the service with an administrator; yields the environment that names both."""
    environment = {
        **os.environ,
        "PORT": "0",
        "HOST": "127.0.0.1",
        "DATA_DIR": str(directory / "data"),
        "LOG_FORMAT": "json",
        # Test the API itself, not hashing or limits.
        "THROTTLE": "false",
        "PASSWORD_HASH_MEMORY_KIB": "8",
        "PASSWORD_HASH_ITERATIONS": "1",
        "ADMIN_EMAIL": ADMIN_EMAIL,
        "ADMIN_PASSWORD": secrets.token_urlsafe(24),
        "PYTHONPATH": os.pathsep.join([str(HERE), str(ROOT)]),
        "SCHEMATHESIS_HOOKS": "hooks",
        "SHINKEI": str(SHINKEI),
    }
    for name in ("DATABASE_URL", "DB_HOST", "DB_NAME", "DB_USER", "DB_PASS", "SECRET_KEY"):
        environment.pop(name, None)
    path = directory / "log"
    command = (str(SHINKEI), "serve")
    with path.open("w") as log, started(*command, env=environment, stderr=log) as service:

        def find_url() -> str:
            if service.poll() is not None:
                sys.exit(f"the service did not start: {path.read_text()}")
            found = re.search('"event":"started","url":"([^"]+)"', path.read_text())
            return found[1] if found else ""

        try:
            url = eventually_blocking(find_url)
            password = environment["ADMIN_PASSWORD"]
            subprocess.run(
                [SHINKEI, "create-admin", "--email", ADMIN_EMAIL],
                env=environment,
                input=f"{password}\n",
                text=True,
                check=True,
            )
            yield {**environment, "SHINKEI_URL": url}
        finally:
            service.send_signal(signal.SIGINT)
            code = service.wait(DEADLINE_S)
        if code != 0:
            sys.exit(f"the service ended with {code}")


if __name__ == "__main__":
    sys.exit(main())
