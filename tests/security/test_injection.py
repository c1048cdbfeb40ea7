"""Input meant for another reader: SQL, file systems, proxies, logs, browsers."""

import json
import re
from typing import Any
from urllib.parse import quote, urlencode

import pytest
from aiohttp.client_reqrep import ClientResponse

from service.settings import Settings
from service.telemetry.logs import JsonFormatter
from tests.support.attacks import Attack, carry_out, report
from tests.support.bad_input import good_values
from tests.support.clients import Client, StartApp
from tests.support.factories import PASSWORD, register, register_as
from tests.support.logbook import written
from tests.support.operations import Request, Requests, operations_of, read_description
from tests.support.state import everything
from tests.support.wire import connected
from tests.support.worlds import create_world

SQL = [
    "' or '1'='1",
    "'; drop table users; --",
    "' union select password_hash from users --",
    "1; select pg_sleep(60)",
    "\\'; --",
    "$$; select 1; $$",
    "%' or email like '%",
    "a' || (select version()) || 'a",
    "{'$gt': ''}",
    ":* & !x | (y <-> z)",
    "*/ or 1=1 /*",
    "admin'/*",
]


async def test_sql_in_any_parameter_is_a_value(
    start_app: StartApp, settings: Settings, conn: Any
) -> None:
    """Refused as a value of its type, or looked for and not found."""
    client = await start_app()
    requests = Requests(client, settings.data_dir)
    wrong: list[str] = []
    count = 0
    for operation in operations_of(await read_description(client)):
        parameters = operation.named("query") if operation.method == "GET" else []
        if not parameters:
            continue
        own = await requests.prepare(operation)
        before = await everything(conn)
        for parameter in parameters:
            name, schema = parameter["name"], parameter["schema"]
            for text in SQL:
                count += 1
                query = urlencode({**({"q": "lamp"} if own.request.query else {}), name: text})
                response = await own.request._replace(query=query).send(client)
                free = schema.get("format", "") in ("", "search") and schema["type"] == "string"
                free = free and "enum" not in schema and name != "cursor"
                if response.status not in ({200, 422} if free else {400, 422}):
                    wrong.append(f"{operation.id}, {query}: {await response.text()}")
                elif response.status == 200 and "password_hash" in await response.text():
                    wrong.append(f"{operation.id}, {query} shows a hash")
            if name != "cursor":
                query = urlencode(
                    {**({"q": "lamp"} if own.request.query else {}), name: good_values(schema)[0]}
                )
                response = await own.request._replace(query=query).send(client)
                if response.status != 200:
                    wrong.append(f"{operation.id}, {query}: {await response.text()}")
        if await everything(conn) != before:
            wrong.append(f"{operation.id} has changed something")
    report(wrong, count, 480)


async def test_filters_with_sql_or_wildcards_match_nothing_else(client: Client) -> None:
    admin = await register_as(client, "admin", name="Ada 100% sure")
    for text in [*SQL, "%", "___", "%%%abc", "_da_", "\\", "abc\\", "***", "Ada%sure"]:
        for path, name in (("/api/v1/users", "q"), ("/api/v1/audit-events", "action")):
            response = await client.get(path, params={name: text}, headers=admin.headers)
            if response.status == 200:
                assert (await response.json())["items"] == [], text
            else:
                assert response.status == 422, text
    response = await client.get("/api/v1/users", params={"q": "100% s"}, headers=admin.headers)
    assert len((await response.json())["items"]) == 1


PRIVATE = "/api/v1/users/me"
# Targets that another server might take for one of ours, or for a file.
TARGETS = [
    *("/docs/../api/v1/users", "/docs/%2e%2e/openapi.json", "/docs/..%2fopenapi.json"),
    *("/docs/%2e%2e%2fopenapi.json", "/docs/..%5copenapi.json", "/docs/..\\openapi.json"),
    *("/docs/....//openapi.json", "/docs/%252e%252e/openapi.json", "/docs/..;/openapi.json"),
    *("/docs/%c0%ae%c0%ae/openapi.json", "/docs/%uff0e%uff0e/openapi.json", "/docs/.%00./x"),
    *("/../../../../etc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "//etc/passwd", "/etc/passwd"),
    *("/docs/page.js/../page.css", "/docs/page.js%00", "/docs/page.js%00.html", "/docs/page.js/x"),
    *(
        "/docs/page%2ejs%2f",
        "/docs/PAGE.JS",
        "/docs/page.js.bak",
        "/docs/page.py",
        "/docs/page.js~",
    ),
    *("/docs/home.html", "/docs/handlers.py", "/docs/__init__.py", "/docs/swagger_ui/LICENSE"),
    *("/.env", "/.git/config", "/.git/HEAD", "/server-status", "/metrics", "/debug", "/admin"),
    *("/.data/mail", "/mail/", "/backup.sql", "/requirements.txt", "/service/app.py"),
    *("/.well-known/../openapi.json", "/.well-known/openid-configuration", "/.well-known/"),
    *(
        "/openapi.json%20",
        "/openapi.json%0a",
        "/openapi.json;x=1",
        "/openapi.yaml",
        "/OPENAPI.json",
    ),
    *(
        "//openapi.json",
        "///openapi.json",
        "/./openapi.json",
        "/openapi.json/./",
        "/openapi.json//",
    ),
    *("/api/v1/users/%6de;", f"{PRIVATE}%2f", f"{PRIVATE}%00", f"{PRIVATE};a=b", f"{PRIVATE}.json"),
    *(
        f"/{PRIVATE}",
        "/api//v1/users/me",
        "/api/v1//users/me",
        "/api/./v1/users/me",
        "/API/v1/users/me",
    ),
    *(
        "/api/v1/users/me/../../users/me",
        "/api/v1/users/ME",
        "/api/v1/users/me%20",
        "/api/v2/users/me",
    ),
    *("/api/v1/users/%2e%2e/users/me", "/api/v1/users/me/%2e", "/api%2fv1%2fusers%2fme"),
    *("/api/v1/users/me%5c", "/api/v1/users/*", "/api/v1/users/-1", "/api/v1/users/0", "/api"),
    *("/cgi-bin/test", "/index.php", "/wp-login.php", "/actuator/env", "/console", "/graphql"),
    *("/%0d%0aSet-Cookie:%20a=b", "/%0aX: y".replace(" ", "%20"), "/%e2%80%ae", "/%3cscript%3e"),
    *(
        "//evil.example/",
        "//evil.example/%2e%2e",
        "/%5cevil.example",
        "/\\evil.example",
        "/%2fevil.example",
    ),
]


async def ask(client: Client, target: str, *fields: str, method: str = "GET") -> str:
    """Send a request with this target as it is, and return the whole response."""
    lines = [f"{method} {target} HTTP/1.1", "Host: localhost", "Connection: close", *fields]
    async with connected(client) as wire:
        wire.writer.write("\r\n".join([*lines, "", ""]).encode("latin-1"))
        return (await wire.reader.read()).decode("latin-1")


async def test_unusual_spellings_of_paths_lead_nowhere(client: Client) -> None:
    """Not even with a token, and never by a redirect."""
    account = await register(client)
    wrong = []
    for target in TARGETS:
        response = await ask(client, target, f"Authorization: {account.headers['Authorization']}")
        head = response.partition("\r\n\r\n")[0]
        if not re.match(r"HTTP/1.1 (404|400) ", head) or "\r\nLocation:" in head:
            wrong.append(f"{target}: {head.partition(chr(13))[0]}")
        if "\r\nSet-Cookie" in head or account.profile["email"] in response:
            wrong.append(f"{target}: {response}")
    for target in (PRIVATE, f"{PRIVATE}/", "/api/v1/users/%6de", "/openapi.json", "/docs/page.js"):
        response = await ask(client, target, f"Authorization: {account.headers['Authorization']}")
        if not response.startswith("HTTP/1.1 200 "):
            wrong.append(f"{target}: {response[:100]}")
    report(wrong, len(TARGETS), 90)


OVERRIDES = {
    "X-HTTP-Method-Override": "DELETE",
    "X-HTTP-Method": "DELETE",
    "X-Method-Override": "DELETE",
    "X-Original-Method": "DELETE",
    "X-Original-URL": "/api/v1/users/me/deletion",
    "X-Rewrite-URL": "/api/v1/users/me/deletion",
    "X-Forwarded-Prefix": "/api/v1/users/me",
    "X-Forwarded-Path": "/api/v1/users/me/deletion",
    "X-Forwarded-Uri": "/api/v1/users/me/deletion",
    "X-Forwarded-Method": "DELETE",
    "X-Accel-Redirect": "/etc/passwd",
    "X-Sendfile": "/etc/passwd",
    "Destination": "/api/v1/users/me/deletion",
    "Content-Location": "/api/v1/users/me/deletion",
    "Range": "bytes=0-0",
    "Upgrade": "h2c",
    "X-Debug": "1",
    "X-Forwarded-Role": "admin",
    "X-Role": "admin",
    "X-Tenant-ID": "1",
}


async def test_headers_change_neither_method_nor_path_nor_role(client: Client) -> None:
    account = await register(client)
    plain = await (await client.get(PRIVATE, headers=account.headers)).read()
    wrong = []
    for name, value in OVERRIDES.items():
        headers = {**account.headers, name: value}
        response = await client.get(PRIVATE, headers=headers)
        if response.status != 200 or await response.read() != plain:
            wrong.append(f"{name} on the profile: {response.status}")
        if (await client.get("/api/v1/users", headers=headers)).status != 403:
            wrong.append(f"{name} on the list of accounts")
        body = {"name": "", "_method": "DELETE"}
        response = await client.patch(f"{PRIVATE}?_method=DELETE", headers=headers, json=body)
        if response.status != 422:
            wrong.append(f"{name} and _method: {response.status}")
    assert await (await client.get(PRIVATE, headers=account.headers)).read() == plain
    report(wrong, len(OVERRIDES), 20)


# Bodies that another parser would take for the JSON of a change of role.
CONFUSING: dict[str, tuple[str, bytes, int, str]] = {
    "form": ("application/x-www-form-urlencoded", b"name=x", 415, "unsupported_media_type"),
    "form called JSON": ("application/json", b"name=x", 400, "malformed_json"),
    "JSON called text": ("text/plain", b'{"name": "x"}', 415, "unsupported_media_type"),
    "JSON called a form": (
        *("application/x-www-form-urlencoded", b'{"name": "x"}'),
        *(415, "unsupported_media_type"),
    ),
    "two types": ("application/json, text/plain", b'{"name": "x"}', 415, "unsupported_media_type"),
    "type in a parameter": (
        *("text/plain; a=application/json", b'{"name": "x"}', 415, "unsupported_media_type"),
    ),
    "type with a suffix": ("application/x+json", b'{"name": "x"}', 415, "unsupported_media_type"),
    "UTF-7": (
        *("application/json; charset=utf-7", b'{"name": "+AGE-"}', 415, "unsupported_media_type"),
    ),
    "EBCDIC": (
        *("application/json; charset=cp037", '{"name": "x"}'.encode("cp037")),
        *(415, "unsupported_media_type"),
    ),
    "UTF-16 called UTF-8": (
        *("application/json", '{"name": "x"}'.encode("utf-16-le"), 400, "malformed_json"),
    ),
    "role twice": ("application/json", b'{"name": "x", "name": "y"}', 400, "malformed_json"),
    "role twice, once escaped": (
        *("application/json", b'{"name": "x", "n\\u0061me": "y"}', 400, "malformed_json"),
    ),
    "escaped role": ("application/json", b'{"r\\u006fle": "admin"}', 422, "invalid_fields"),
    "role in capitals": ("application/json", b'{"ROLE": "admin"}', 422, "invalid_fields"),
    "role and NUL": ("application/json", b'{"role\\u0000": "admin"}', 422, "invalid_fields"),
    "role and a space": ("application/json", b'{"role ": "admin"}', 422, "invalid_fields"),
    "role in a name with dots": (
        "application/json",
        b'{"user.role": "admin"}',
        422,
        "invalid_fields",
    ),
    "role in brackets": ("application/json", b'{"user[role]": "admin"}', 422, "invalid_fields"),
    "role within": ("application/json", b'{"user": {"role": "admin"}}', 422, "invalid_fields"),
    "patch operations": (
        *("application/json", b'[{"op": "replace", "path": "/role", "value": "admin"}]'),
        *(422, "invalid_fields"),
    ),
    "operator": ("application/json", b'{"name": {"$ne": null}}', 422, "invalid_fields"),
    "comment": ("application/json", b'{"name": "x" /* */}', 400, "malformed_json"),
    "JSON5": ("application/json", b"{name: 'x'}", 400, "malformed_json"),
    "JSONP": ("application/json", b'f({"name": "x"})', 400, "malformed_json"),
    "prefix against hijacking": (
        "application/json",
        b')]}\',\n{"name": "x"}',
        400,
        "malformed_json",
    ),
    "two documents": ("application/json", b'{"name": "x"}{"role": "admin"}', 400, "malformed_json"),
    "lines of JSON": ("application/json", b'{"name": "x"}\n{"name": "y"}', 400, "malformed_json"),
    "NUL after it": ("application/json", b'{"name": "x"}\0', 400, "malformed_json"),
    "XML": ("application/xml", b"<name>x</name>", 415, "unsupported_media_type"),
    "external entity": (
        "application/json",
        b'<!DOCTYPE x [<!ENTITY e SYSTEM "file:///etc/passwd">]><x>&e;</x>',
        *(400, "malformed_json"),
    ),
    "YAML": (
        "application/yaml",
        b"!!python/object/apply:os.system ['id']",
        415,
        "unsupported_media_type",
    ),
    "pickle": ("application/json", b"\x80\x04cos\nsystem\n.", 400, "malformed_json"),
}


async def test_bodies_that_parsers_read_differently_are_refused(client: Client) -> None:
    account = await register(client)
    twin = Request("PATCH", PRIVATE, "", account.headers, {"name": "Ada"})
    attacks = (
        Attack(name, twin.with_headers(Content_Type=kind)._replace(body=body), twin, status, code)
        for name, (kind, body, status, code) in CONFUSING.items()
    )
    await carry_out(client, attacks, at_least=30)
    assert (await (await client.get(PRIVATE, headers=account.headers)).json())["role"] == "user"


ENDINGS = ["\r\n", "\n", "\r", "\x85", "\u2028", "\x0b", "\x1b[2K", "\0"]


@pytest.mark.asvs("16.4.1")
async def test_line_endings_in_input_neither_split_headers_nor_log_lines(client: Client) -> None:
    """In the path, the query, the body, and in headers where HTTP allows them."""
    account = await register(client)
    wrong: list[str] = []
    count = 0
    for ending in ENDINGS:
        text = f'x{ending}Set-Cookie: a=b{ending}{ending}{{"event": "forged"}}'
        hidden = quote(text, safe="")
        reply: list[ClientResponse] = []
        with written(JsonFormatter()) as lines:
            for request in (
                Request("GET", f"/{hidden}"),
                Request("GET", f"{PRIVATE}/{hidden}", headers=account.headers),
                Request("GET", "/api/v1/worlds", f"limit={hidden}", account.headers),
                Request("GET", "/api/v1/worlds", f"{hidden}=1", account.headers),
                Request("PATCH", PRIVATE, "", account.headers, {"name": text}),
                Request("PATCH", PRIVATE, "", account.headers, {text: 1}),
                Request("POST", "/api/v1/auth/login", body={"email": text, "password": text}),
                Request(
                    "POST", "/api/v1/auth/password/forgot", body={"email": f"a@b.example{ending}"}
                ),
            ):
                count += 1
                reply.append(await request.send(client))
        wrong += [
            f"{ending!r}: {response.status} {response.headers}"
            for response in reply
            if "Set-Cookie" in response.headers or response.status not in (400, 404, 422)
        ]
        events = [json.loads(line)["event"] for line in lines if line.count(b"\n") == 1]
        if len(events) != len(lines) or events.count("request") != len(reply):
            wrong.append(f"{ending!r} splits a line: {lines}")
        if "forged" in events:
            wrong.append(f"{ending!r} forges an event: {lines}")
    report(wrong, count, 64)


async def test_malformed_request_ids_are_not_repeated(client: Client) -> None:
    wrong = []
    ids = [
        "",
        " ",
        "a b",
        "a\tb",
        "é",
        "a" * 129,
        "<script>",
        "a;b",
        "a,b",
        "a/b",
        "%0d%0aX: y",
        "{}",
    ]
    for given in ids:
        response = await client.get("/health/live", headers={"X-Request-ID": given})
        if response.headers["X-Request-ID"] == given:
            wrong.append(given)
    response = await client.get("/health/live", headers={"X-Request-ID": "a" * 128})
    assert response.headers["X-Request-ID"] == "a" * 128
    report(wrong, len(ids), 12)


@pytest.mark.asvs("3.2.1", "3.2.2")
async def test_markup_in_stored_texts_is_never_html(client: Client) -> None:
    account = await register(client, name="<script>alert(1)</script>")
    world = await create_world(client, account, name="<img src=x onerror=alert(1)>")
    for path in (PRIVATE, world.path, "/api/v1/worlds", f"{PRIVATE}/export", "/%3Cscript%3E"):
        response = await client.get(path, headers=account.headers)
        assert response.content_type in ("application/json", "application/problem+json")
        assert response.headers["X-Content-Type-Options"] == "nosniff"


async def test_passwords_beyond_any_are_refused_before_hashing(client: Client) -> None:
    account = await register(client)
    wrong: list[str] = []
    count = 0
    for size, status in ((257, 422), (1000, 422), (60_000, 422), (70_000, 413), (1_000_000, 413)):
        long = "x" * size
        for path, body in {
            "/api/v1/auth/login": {"email": account.profile["email"], "password": long},
            "/api/v1/auth/register": {"email": "long@example.com", "password": long},
            "/api/v1/auth/password/reset": {"token": "x", "password": long},
            "/api/v1/auth/email/verify": {"token": "x", "new_password": long},
            "/api/v1/users/me/password": {"current_password": PASSWORD, "password": long},
            "/api/v1/users/me/email": {"email": "long@example.com", "password": long},
            "/api/v1/users/me/deletion": {"password": long},
        }.items():
            count += 1
            request = Request("POST", path, "", account.headers, body)
            response = await request.send(client)
            if response.status != status:
                wrong.append(f"{path}, {size} characters: {response.status}")
    report(wrong, count, 35)
