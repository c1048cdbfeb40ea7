"""Claims of the documents that can be checked: commands, routes, codes, files and the tour."""

import asyncio
import json
import re
import tomllib
from collections.abc import Iterator

import click
import pytest

from service.commands import shinkei
from service.http.descriptions import description_of
from service.routes import ROUTES
from tests.support.clients import ROOT, Client
from tests.support.factories import register
from tests.support.programs import require
from tests.support.waiting import DEADLINE_S
from tools.errors import DOCUMENT, markdown, problems

DOCUMENTS = {
    str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
    for pattern in ("*.md", "docs/*.md", "docs/adr/*.md", "benchmarks/*.md")
    for path in sorted(ROOT.glob(pattern))
}
# Speaks of what was.
del DOCUMENTS["CHANGELOG.md"]
# Has an example of a route and a migration that do not exist.
PRESENT = {path: text for path, text in DOCUMENTS.items() if path != "CONTRIBUTING.md"}


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def code_in(text: str) -> list[str]:
    """Return the code of a document: spans between backticks, and lines of shell blocks."""
    prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    spans = [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose)]
    return spans + [line for block in blocks(text, "sh") for line in block.splitlines()]


async def test_tour_of_the_readme_does_what_it_says(client: Client) -> None:
    require("curl")
    bash = require("bash")
    tour = DOCUMENTS["README.md"].split("## A one-minute tour")[1]
    script = blocks(tour, "sh")[0].replace("http://localhost:8080", str(client.make_url("")))
    again = script[script.rindex("curl ") :]
    process = await asyncio.create_subprocess_exec(
        bash, "-euc", f"{script}\n{again}", stdout=asyncio.subprocess.PIPE
    )
    written, _ = await asyncio.wait_for(process.communicate(), DEADLINE_S)
    registered, *read, changed, refused = written.decode().splitlines()
    assert process.returncode == 0
    assert json.loads(registered)["user"]["email"] == "ada@example.com"
    assert read[0] == "HTTP/1.1 200 OK"
    assert 'ETag: "1"' in read
    assert json.loads(changed)["name"] == "Ada Lovelace"
    assert json.loads(refused)["status"] == 412


async def test_error_in_the_readme_is_what_the_service_responds(client: Client) -> None:
    shown = json.loads(blocks(DOCUMENTS["README.md"], "json")[0])
    account = await register(client)
    body = {"settings": {"ui_theme": "blue"}}
    response = await client.patch("/api/v1/users/me", headers=account.headers, json=body)
    problem = await response.json(content_type=None)
    for members in (shown, problem):
        assert re.fullmatch("[0-9a-f]{32}", members.pop("request_id"))
    assert problem == shown


@pytest.mark.parametrize("path", DOCUMENTS)
def test_links_and_files_in_documents_exist(path: str) -> None:
    text, base = DOCUMENTS[path], (ROOT / path).parent
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        target, _, anchor = link.partition("#")
        if not target.startswith(("http:", "https:")):
            found = base / target if target else ROOT / path
            assert found.exists(), link
            assert not anchor or anchor in anchors(found.read_text(encoding="utf-8")), link
    for name in re.findall(
        r"(?<![\w/.-])(?:service|tests|tools|docs|deploy|migrations|benchmarks|examples)/[\w./*-]+",
        " ".join(code_in(text)),
    ):
        assert list(ROOT.glob(f"{name}*")), name


def test_tests_in_documents_exist() -> None:
    """Those in docs/asvs.md are written from the tests."""
    named = re.findall(r"`(tests/[\w/]+\.py)::(test_\w+)`", DOCUMENTS["docs/security.md"])
    assert named
    for path, name in named:
        assert re.search(rf"^(async )?def {name}\(", (ROOT / path).read_text(), re.MULTILINE), name


def anchors(markdown: str) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", markdown, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", DOCUMENTS)
def test_make_targets_in_documents_exist(path: str) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = re.findall(r"(?:^|\n)make ([a-z-]+)", "\n".join(code_in(DOCUMENTS[path])))
    assert set(named) <= targets


def commands(group: click.Group = shinkei, prefix: str = "") -> Iterator[tuple[str, set[str]]]:
    """Yield each command with its options."""
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group):
            yield from commands(command, f"{prefix}{name} ")
        else:
            options = {option for param in command.params for option in param.opts}
            yield f"{prefix}{name}", {option for option in options if option.startswith("--")}


COMMANDS = dict(commands())


@pytest.mark.parametrize("path", DOCUMENTS)
def test_commands_and_options_in_documents_exist(path: str) -> None:
    for code in code_in(DOCUMENTS[path]):
        # Anything else that is called shinkei, such as a role, comes after other words.
        found = re.match(
            r"(?:[A-Z_]+=\S+ )*shinkei ((?:(?:users|audit|keys) )?[a-z][a-z-]*)(.*)", code
        )
        if found:
            assert found[1] in COMMANDS, code
            options = set(re.findall(r" (--[a-z-]+)", re.split("[#>|]", found[2])[0]))
            assert options - {"--help"} <= COMMANDS[found[1]], code


def test_every_command_and_option_is_documented() -> None:
    page = set(re.findall(r"--[a-z-]+|[a-z-]+", " ".join(code_in(DOCUMENTS["docs/commands.md"]))))
    for command, options in COMMANDS.items():
        missing = {*command.split(), *options} - page
        assert not missing, f"{command}: {missing} is not in docs/commands.md"


def test_guide_to_adding_a_migration_names_none_that_exists() -> None:
    """Its example would otherwise soon be of a migration that is no longer the next."""
    guide = DOCUMENTS["CONTRIBUTING.md"].partition("## Add a migration")[2].partition("\n## ")[0]
    assert "depends: " in guide
    assert re.findall(r"\b[0-9]{4}\.[a-z-]+", guide) == []


def routes_in(text: str) -> set[str]:
    """Return the routes that the document names, with ``{}`` for each parameter."""
    found = set()
    for code in code_in(text):
        for method, path in re.findall(r"\b(GET|POST|PUT|PATCH|DELETE) (/[\w./{}…-]*)", code):
            found.add(f"{method} {without_prefix(path)}")
    return found


def without_prefix(path: str) -> str:
    return re.sub("{[a-z_]+}", "{}", path.removeprefix("/api/v1").rstrip("/.")) or "/"


TABLE = {f"{route.method} {without_prefix(route.path)}" for route in ROUTES}


@pytest.mark.parametrize("path", PRESENT)
def test_routes_in_documents_exist(path: str) -> None:
    assert routes_in(PRESENT[path]) - TABLE == set()


def test_every_route_is_documented() -> None:
    """Except for the parts of the docs page."""
    named = routes_in(DOCUMENTS["docs/accounts.md"] + DOCUMENTS["docs/worlds.md"])
    parts = {route for route in TABLE if route.startswith("GET /docs/")}
    assert TABLE - parts - named == set()


def test_posts_that_accept_no_idempotency_key_are_documented() -> None:
    sentences = [
        re.findall(
            "Every POST accepts an `Idempotency-Key`, except for (.*?)[.] ",
            " ".join(DOCUMENTS[path].split()),
        )[0]
        for path in ("docs/accounts.md", "docs/worlds.md")
    ]
    assert routes_in(" ".join(sentences)) == {
        f"POST {without_prefix(route.path)}"
        for route in ROUTES
        if route.method == "POST" and not description_of(route.handler).idempotent
    }


def test_every_problem_is_documented() -> None:
    assert DOCUMENT.read_text(encoding="utf-8") == markdown(), "run: python -m tools.errors"


@pytest.mark.parametrize("path", DOCUMENTS)
def test_problems_in_documents_exist(path: str) -> None:
    named = re.findall(r"\b([45]\d\d) `([a-z_]+)`", DOCUMENTS[path])
    known = {(str(problem.status), problem.code) for problem in problems()}
    assert set(named) <= known


@pytest.mark.parametrize("path", DOCUMENTS)
def test_installation_in_documents_is_from_a_checkout(path: str) -> None:
    """PyPI has a package of this name, which is another project."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for line in re.findall("pip install ([^`#\n]*)", DOCUMENTS[path]):
        assert "shinkei" not in line
        for extras in re.findall(r"\.\[([a-z,]+)\]", line):
            assert set(extras.split(",")) <= project["optional-dependencies"].keys()
