"""Run the examples as their documentation says."""

import re
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from examples import novel, walk
from service.routes import ROUTES
from tests.support.browser import open_page
from tests.support.clients import ROOT, Client, StartApp, pool_of
from tests.support.factories import Account, register, register_as
from tests.support.processes import SHINKEI, environment, run_command, serving
from tests.support.worlds import World

PASSWORD = "who looks after the engines"


async def test_example_walk_sends_a_request_to_every_route_and_deletes_its_accounts(
    start_app: StartApp, tmp_path: Path, capsys: pytest.CaptureFixture[str], mail_at_once: None
) -> None:
    client = await start_app()
    admin = await register_as(client, "admin")
    mail_dir = tmp_path / "data" / "mail"
    await walk.walk(str(client.make_url("/")), mail_dir, admin.profile["email"], admin.password)
    lines = re.findall(r"^([A-Z]+ +[^ ?]+)", capsys.readouterr().out, re.MULTILINE)
    walked = {" ".join(line.split()) for line in lines}
    table = {f"{route.method} {re.sub('{[a-z_]+}', '{id}', route.path)}" for route in ROUTES}
    without_step = ", ".join(sorted(table - walked))
    assert not without_step, f"add steps to examples/walk.py for: {without_step}"
    assert walked <= table
    left = await pool_of(client).fetch("select email from users where purge_at is null")
    assert [row["email"] for row in left] == [admin.profile["email"]]


@pytest.mark.slow
def test_example_walk_completes_beside_a_running_service(tmp_path: Path) -> None:
    with serving(tmp_path) as (_, url, _):
        variables = environment(
            SHINKEI_URL=url,
            DATA_DIR=str(tmp_path / ".data"),
            ADMIN_EMAIL="root@example.com",
            ADMIN_PASSWORD=PASSWORD,
        )
        command = (*SHINKEI, "create-admin", "--email", "root@example.com")
        created = run_command(*command, cwd=tmp_path, env=variables, text=f"{PASSWORD}\n")
        assert created.returncode == 0, created.stderr
        walk = run_command(
            sys.executable, str(ROOT / "examples" / "walk.py"), cwd=tmp_path, env=variables
        )
    assert walk.returncode == 0, walk.stdout + walk.stderr
    assert walk.stdout.splitlines()[-1] == "done"


async def write_novel(client: Client, account: Account) -> World:
    """Write a small novel, and return its world."""
    async with aiohttp.ClientSession(client.make_url("/")) as http:
        writer = novel.Client(http, account.headers)
        world_id = await novel.write_novel(writer, novel.compose(stories=2, beats=5, events=4))
    return World(client, account.headers, {"id": world_id})


async def test_example_novel_writes_a_world_whose_stories_meet(client: Client) -> None:
    world = await write_novel(client, await register(client))
    stories = await world.get("stories")
    assert len(stories) == 3
    assert len(await world.get(f"/api/v1/stories/{stories[-1]['id']}/beats")) == 5
    assert len(await world.get("timeline")) == 5
    assert await world.get("intersections")


def test_example_novel_composes_the_same_document_each_time() -> None:
    assert novel.compose(1, 20, 10) == novel.compose(1, 20, 10)


@pytest.fixture
async def examples_url() -> AsyncIterator[str]:
    """The URL under which a server of files has the examples."""
    app = web.Application()
    app.router.add_static("/", ROOT / "examples")
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    await runner.cleanup()


async def test_example_timeline_draws_a_world_from_another_origin(
    start_app: StartApp, examples_url: str
) -> None:
    client = await start_app(cors_origins=frozenset({examples_url}))
    account = await register(client)
    timeline = await (await write_novel(client, account)).get("timeline")
    async with open_page() as page:
        await page.goto(f"{examples_url}/timeline.html")
        await page.get_by_label("Service").fill(str(client.make_url("/")))
        await page.get_by_label("Email").fill(account.profile["email"])
        await page.get_by_label("Password").fill(account.password)
        await page.get_by_role("button", name="Show my worlds").click()
        events = page.locator("svg .event")
        await events.first.wait_for()
        assert await events.count() == len(timeline)
        await events.first.focus()
        await page.keyboard.press("ArrowRight")
        shown = await page.get_by_role("region", name="Event", exact=True).inner_text()
        assert timeline[1]["event"]["summary"] in shown
