"""``make clients``: generate clients from the API's description and call the service with them.

    .venv/bin/python -m tests.clients.run [--only PATTERN]

Starts the service, and for each generator: generates a client from ``/openapi.json``, counts the
operations that it has, compiles or imports it, and runs the calls in ``calls/``. Prints a table.
Fails if an operation is missing, a generator warns, or a call has another result than expected.
"""

import argparse
import contextlib
import json
import os
import re
import secrets
import shutil
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from tests.support.clients import ROOT
from tests.support.processes import SHINKEI, environment, run_command, serving

HERE = Path(__file__).parent
# Kept for a look at it, until the next run.
GENERATED = HERE / ".generated"
DOCUMENT = GENERATED / "openapi.json"
ORVAL = GENERATED / "orval.config.js"
PYTHON = ROOT / ".venv-clients" / "bin"
MODULES = HERE / "node_modules"
# The generators need a newer Node.js than some systems have, so package.json brings one.
NODE = str(next(MODULES.glob("node-*/bin/node"), "node"))
ADMIN_EMAIL = "root@example.com"
TIMEOUT_S = 600
# What each script in calls/ prints. The last three calls fail on purpose.
WANTED = [
    "users_register: user",
    "sessions_login: bearer",
    "users_read_me: its email",
    "users_merge_me: dark",
    "sessions_list_mine: 2 sessions",
    "admin_list_users: 1 account",
    "sessions_login: 401 invalid_credentials",
    "users_register: 422 invalid_fields #/email",
    "users_merge_me: 412 precondition_failed",
]


class Generator(NamedTuple):
    """A generator: its command, what it writes, and what calls the result.

    ``operation`` finds the operations in the generated files, as camel case if ``camel``.
    """

    name: str
    package: str
    command: tuple[str, ...]
    output: str
    calls: str
    operation: str
    camel: bool = True


def node(script: str) -> tuple[str, ...]:
    return (NODE, str(MODULES / script))


def openapi_generator(language: str, output: str) -> tuple[str, ...]:
    program = str(PYTHON / "openapi-generator-cli")
    return (program, "generate", "-g", language, "-i", "{document}", "-o", str(GENERATED / output))


def orval(version: int, script: str) -> Generator:
    return Generator(
        f"orval {version}",
        f"orval-{version}",
        (*node(f"orval-{version}/dist/bin/{script}"), "--config", str(ORVAL)),
        "orval",
        "orval.ts",
        r"export const (\w+) = async",
    )


GENERATORS = (
    Generator(
        "openapi-typescript",
        "openapi-typescript",
        (
            *node("openapi-typescript/bin/cli.js"),
            *("{url}/openapi.json", "-o", str(GENERATED / "openapi-typescript" / "schema.ts")),
        ),
        "openapi-typescript",
        "openapi_typescript.ts",
        r"^    (\w+): \{$",
        camel=False,
    ),
    Generator(
        "hey-api",
        "@hey-api/openapi-ts",
        (
            *node("@hey-api/openapi-ts/bin/run.js"),
            *("-i", "{url}/openapi.json", "-o", str(GENERATED / "hey-api")),
        ),
        "hey-api",
        "hey_api.ts",
        r"export const (\w+) = <ThrowOnError",
    ),
    orval(7, "orval.js"),
    orval(8, "orval.mjs"),
    Generator(
        "openapi-generator, typescript-fetch",
        "openapi-generator-cli",
        openapi_generator("typescript-fetch", "openapi-generator-typescript"),
        "openapi-generator-typescript",
        "openapi_generator_typescript.ts",
        r"async (\w+)\(",
    ),
    Generator(
        "openapi-generator, python",
        "openapi-generator-cli",
        openapi_generator("python", "openapi-generator-python"),
        "openapi-generator-python",
        "openapi_generator_python.py",
        r"def (\w+)\(",
        camel=False,
    ),
    Generator(
        "openapi-python-client",
        "openapi-python-client",
        (
            str(PYTHON / "openapi-python-client"),
            *("generate", "--url", "{url}/openapi.json", "--meta", "none"),
            *("--output-path", str(GENERATED / "openapi-python-client" / "openapi_python")),
            "--overwrite",
        ),
        "openapi-python-client",
        "openapi_python_client.py",
        "",
        camel=False,
    ),
)
# Lines that a generator prints although nothing is wrong with the description.
HARMLESS = re.compile(
    "OpenAPI 3.1 support is still in beta|schema name: null|property is null|writing file|errors_inner"
)
WARNING = re.compile("warn|error|unable|cannot|skipping", re.IGNORECASE)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", default="", help="generators whose name matches this pattern")
    only = parser.parse_args().only
    chosen = [each for each in GENERATORS if re.search(only, each.name)]
    if shutil.which("java") is None:
        print("openapi-generator is left out, because it needs java")
        chosen = [each for each in chosen if each.package != "openapi-generator-cli"]
    shutil.rmtree(GENERATED, ignore_errors=True)
    GENERATED.mkdir()
    with service_with_admin() as (url, password):
        with urllib.request.urlopen(f"{url}/openapi.json") as response:
            DOCUMENT.write_bytes(response.read())
        api = {"target": str(GENERATED / "orval" / "api.ts"), "client": "fetch", "baseUrl": url}
        config = {"shinkei": {"input": str(DOCUMENT), "output": api}}
        ORVAL.write_text(f"module.exports = {json.dumps(config)};")
        results = [try_generator(each, url, password) for each in chosen]
    print("\n| generator | version | operations | compiles | calls |\n|---|---|---|---|---|")
    total = len(operation_ids())
    for generator, result in zip(chosen, results, strict=True):
        operations = "all" if result.operations == total else f"{result.operations} of {total}"
        print(
            f"| {generator.name} | {version_of(generator)} | {operations}"
            f" | {'yes' if result.compiles else 'no'} | {result.calls} of {len(WANTED)} |"
        )
    return any(result.faults for result in results)


@contextlib.contextmanager
def service_with_admin() -> Iterator[tuple[str, str]]:
    """Run the service; yields its URL and the administrator's password."""
    with tempfile.TemporaryDirectory(prefix="shinkei-clients-") as name:
        directory = Path(name)
        variables = {
            "DATA_DIR": str(directory / "data"),
            "LOG_FORMAT": "console",
            "LOG_LEVEL": "warning",
            "THROTTLE": "false",
        }
        with serving(directory, **variables) as served:
            password = secrets.token_urlsafe(24)
            created = run_command(
                *(*SHINKEI, "create-admin", "--email", ADMIN_EMAIL),
                cwd=directory,
                env=environment(**variables),
                text=f"{password}\n",
            )
            if created.returncode:
                sys.exit(created.stderr)
            yield served.url, password


class Result(NamedTuple):
    """The operations and calls that work, and what is wrong."""

    operations: int
    compiles: bool
    calls: int
    faults: list[str]


def try_generator(generator: Generator, url: str, password: str) -> Result:
    """Generate a client, compile it if it is TypeScript, and run the calls."""
    print(f"== {generator.name}", flush=True)
    result = generate_and_call(generator, url, password)
    for fault in result.faults:
        print(fault)
    return result


def generate_and_call(generator: Generator, url: str, password: str) -> Result:
    (GENERATED / generator.output).mkdir(exist_ok=True)
    made = execute(*(part.format(url=url, document=DOCUMENT) for part in generator.command))
    lines = made.stdout.splitlines()
    faults = [each for each in lines if WARNING.search(each) and not HARMLESS.search(each)]
    if made.returncode:
        faults.append(f"{generator.command[0]} ended with {made.returncode}")
    missing = operation_ids() - find_operations(generator)
    faults += [f"no operation {name}" for name in sorted(missing)]
    operations = len(operation_ids()) - len(missing)
    script = HERE / "calls" / generator.calls
    if script.suffix == ".ts":
        compiled = compile_calls(script)
        if compiled.returncode:
            return Result(operations, False, 0, [*faults, *compiled.stdout.splitlines()[:20]])
    called = execute(
        *calls_of(script),
        SHINKEI_URL=url,
        GENERATED=str(GENERATED / generator.output),
        CLIENT=generator.package.strip("@").replace("/", "-") + script.suffix,
        ADMIN_EMAIL=ADMIN_EMAIL,
        ADMIN_PASSWORD=password,
    )
    reported = [line for line in called.stdout.splitlines() if line in WANTED]
    if called.returncode or called.stdout.splitlines() != WANTED:
        faults += called.stdout.splitlines()
    return Result(operations, "ImportError" not in called.stdout, len(reported), faults)


def execute(*command: str, **variables: str) -> "subprocess.CompletedProcess[str]":
    """Run a command to completion; ``stdout`` has stderr too."""
    return subprocess.run(
        command,
        cwd=HERE,
        env={**os.environ, "PATH": f"{PYTHON}:{os.environ['PATH']}", **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=TIMEOUT_S,
    )


def compile_calls(script: Path) -> "subprocess.CompletedProcess[str]":
    """Compile the script with the client that it imports, in TypeScript's strict mode."""
    return execute(
        *node("typescript/bin/tsc"),
        *("--strict", "--skipLibCheck", "--esModuleInterop", "--types", "node"),
        *("--target", "es2022", "--module", "commonjs", "--moduleResolution", "node10"),
        *("--rootDir", str(HERE), "--outDir", str(GENERATED / "js"), str(script)),
    )


def calls_of(script: Path) -> list[str]:
    if script.suffix == ".py":
        return [str(PYTHON / "python"), str(script)]
    return [NODE, str(GENERATED / "js" / "calls" / f"{script.stem}.js")]


def operation_ids() -> set[str]:
    paths: dict[str, dict[str, Any]] = json.loads(DOCUMENT.read_bytes())["paths"]
    return {each["operationId"] for methods in paths.values() for each in methods.values()}


def find_operations(generator: Generator) -> set[str]:
    """Return the operations that the generated client has."""
    files = [
        path
        for path in (GENERATED / generator.output).rglob("*")
        if path.suffix in (".py", ".ts") and path.is_file()
    ]
    if not generator.operation:
        # A module for each operation.
        return operation_ids() & {path.stem for path in files}
    found = {
        name
        for path in files
        for name in re.findall(generator.operation, path.read_text(), re.MULTILINE)
    }
    written = to_camel if generator.camel else str
    return {name for name in operation_ids() if written(name) in found}


def to_camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(map(str.title, rest))


def version_of(generator: Generator) -> str:
    manifest = MODULES / generator.package / "package.json"
    if manifest.exists():
        version: str = json.loads(manifest.read_text())["version"]
        return version
    code = f"import importlib.metadata as m; print(m.version({generator.package!r}))"
    return execute(str(PYTHON / "python"), "-c", code).stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
