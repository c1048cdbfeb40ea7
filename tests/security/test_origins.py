"""Who sends a request, from where, and to which mailbox: what the client claims does not count."""

import unicodedata
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest

from service.settings import Rate, Settings
from tests.support.attacks import report
from tests.support.clients import Client, StartApp
from tests.support.factories import PASSWORD, Account, register
from tests.support.mailbox import next_mail, text_of
from tests.support.steps import RESET, WRONG, forgot, mails, send, sign_in
from tests.support.wire import connected

ORIGIN = "https://accounts.example"
EVIL = "evil.example"
FORGOT = "/api/v1/auth/password/forgot"
# Headers from which other services take their own name.
HOSTS = {
    "Host": EVIL,
    "X-Forwarded-Host": EVIL,
    "X-Forwarded-Server": EVIL,
    "X-Host": EVIL,
    "X-Original-Host": EVIL,
    "X-HTTP-Host-Override": EVIL,
    "Forwarded": f"for=192.0.2.1;host={EVIL};proto=http",
    "X-Forwarded-Proto": "http",
    "X-Forwarded-Scheme": "javascript",
    "X-Forwarded-Port": "666",
    "X-Forwarded-Prefix": f"//{EVIL}",
    "X-Original-URL": f"http://{EVIL}/",
    "X-Rewrite-URL": f"http://{EVIL}/",
    "Origin": f"https://{EVIL}",
    "Referer": f"https://{EVIL}/",
    "Base-URL": f"https://{EVIL}/",
    "Front-End-Https": "off",
    "Via": f"1.1 {EVIL}",
}
# Targets and hosts that an HTTP library would not send.
RAW = {
    "absolute target": (f"http://{EVIL}{FORGOT}", "localhost"),
    "absolute target and host": (f"http://{EVIL}{FORGOT}", EVIL),
    "host with a port": (FORGOT, f"{EVIL}:443"),
    "host with our name before": (FORGOT, f"accounts.example.{EVIL}"),
    "host in capitals": (FORGOT, EVIL.upper()),
    "IP": (FORGOT, "[2001:db8::1]:80"),
}


async def link_in_mail(data_dir: Path, account: Account) -> str:
    """Return the text of the next mail to the account about its password."""
    while True:
        mail = await next_mail(data_dir, account.profile["email"])
        if "#token=" in text_of(mail) and "/password/reset" in text_of(mail):
            return text_of(mail)


async def test_links_in_mails_lead_to_the_configured_origin(
    start_app: StartApp, settings: Settings
) -> None:
    client = await start_app(public_origin=ORIGIN)
    wrong: list[str] = []
    accounts: dict[str, Account] = {}
    for name, value in HOSTS.items():
        account = accounts[f"{name}: {value}"] = await register(client)
        body = {"email": account.profile["email"]}
        response = await client.post(FORGOT, json=body, headers={name: value})
        if response.status != 202 or await response.read():
            wrong.append(f"{name}: {response.status}")
    for name, (target, host) in RAW.items():
        account = accounts[name] = await register(client)
        body_text = f'{{"email": "{account.profile["email"]}"}}'
        lines = [f"POST {target} HTTP/1.1", f"Host: {host}", "Content-Type: application/json"]
        lines += [f"Content-Length: {len(body_text)}", "Connection: close", "", body_text]
        async with connected(client) as wire:
            wire.writer.write("\r\n".join(lines).encode())
            if not (await wire.reader.read()).startswith(b"HTTP/1.1 202 "):
                wrong.append(f"{name} is refused")
    plain = await register(client)
    assert (await forgot(client, plain.profile["email"])).status == 202
    for name, account in {**accounts, "nothing": plain}.items():
        text = await link_in_mail(settings.data_dir, account)
        if f"{ORIGIN}/password/reset#token=" not in text or EVIL in text.lower():
            wrong.append(f"{name}: {text}")
    report(wrong, len(accounts), 24)


# Spellings of mike@example.com that look like it. None of them may get its mail.
LOOK_ALIKES = [
    *("mıke", "mİke", "míke", "mıkE", "ｍｉｋｅ", "mіke", "mikе", "ⅿike", "miκe", "mike\u0301"),
    *("mi\u0307ke", "m1ke", "mlke", "mi.ke", "mike+reset", "mike.", "ｍike", "miᴋe", "🅼ike"),
    *("mike\u200b", "\u200dmike", "mi\xadke", "mike\u202e", "mike\0", "mike\r\n", " mike", "mike "),
    *('"mike"', "mike,eve", "mike;eve", "mike%00", "mike%40example.com", "<mike", "mike>"),
    *("mike@evil.example\n", "mike@example.com,eve", "eve@evil.example mike"),
]
DOMAINS = [
    *("exаmple.com", "example.com.evil.example", "example.co", "example.com\u200b", "examp1e.com"),
    *("exámple.com", "example。com.evil.example", "xn--exmple-cua.com", "evil.example#example.com"),
    *("example.com@evil.example", "example.com\r\nBcc: eve@evil.example", "[127.0.0.1]"),
    *("evil.example\0.example.com", "example.com>", "example.com,evil.example", "sub.example.com"),
]


@pytest.mark.asvs("6.4.3")
async def test_look_alike_emails_get_no_mail_of_another(
    start_app: StartApp, settings: Settings, conn: Any
) -> None:
    """Neither by a reset nor by a sign-in. In capitals, the email itself gets it."""
    client = await start_app()
    mike = await register(client, email="mike@example.com")
    await next_mail(settings.data_dir, "mike@example.com")
    wrong: list[str] = []
    texts = [f"{local}@example.com" for local in LOOK_ALIKES]
    texts += [f"mike@{domain}" for domain in DOMAINS]
    for text in texts:
        response = await forgot(client, text)
        if response.status not in (202, 422):
            wrong.append(f"{text!r}: {response.status}")
        body = {"email": text, "password": mike.password}
        response = await send(client, "POST", "/auth/login", body)
        if response.status not in (401, 422):
            wrong.append(f"{text!r} signs in: {response.status}")
    sent = await mails(settings.data_dir, conn)
    assert sent == [], sent
    assert (await forgot(client, "MIKE@EXAMPLE.COM")).status == 202
    await next_mail(settings.data_dir, "mike@example.com")
    report(wrong, len(texts), 50)


async def test_mail_goes_to_the_stored_email_whichever_spelling_was_typed(
    start_app: StartApp, settings: Settings, conn: Any
) -> None:
    """Spellings that fold to the same email are those of its owner."""
    client = await start_app()
    pairs = {
        "mike@one.example": ["MIKE@one.example", "mi\u212ae@one.example", "mike@ONE.example"],
        "straße@one.example": ["STRASSE@one.example", "strasse@one.example", "straẞe@one.example"],
        "σίσυφος@one.example": ["ΣΊΣΥΦΟΣ@one.example", "σίσυφοσ@one.example"],
        "josé@one.example": [unicodedata.normalize("NFD", "josé@one.example"), "JOSÉ@one.example"],
        "ﬁn@one.example": ["fin@one.example", "FIN@one.example"],
        "ſam@one.example": ["sam@one.example", "SAM@one.example"],
    }
    for stored, spellings in pairs.items():
        account = await register(client, email=stored)
        for typed in spellings:
            assert (await forgot(client, typed)).status == 202, typed
            response = await client.post(
                "/api/v1/auth/register", json={"email": typed, "password": PASSWORD}
            )
            assert response.status in (409, 422), typed
        sent = await mails(settings.data_dir, conn)
        assert sent.count((account.profile["email"], RESET)) == len(spellings), sent
        recipients = {to for to, _ in sent}
        assert recipients <= {account.profile["email"], *pairs}, recipients


async def shown(client: Client, path: str, body: dict[str, str]) -> tuple[int, Any, dict[str, str]]:
    """Return all of a response but its date, request id and what is left of limits per email."""
    response = await client.post(path, json=body)
    document = await response.json() if await response.read() else {}
    document.pop("request_id", None)
    headers = {
        name: value
        for name, value in response.headers.items()
        if name not in ("Date", "X-Request-ID", "RateLimit", "RateLimit-Policy")
    }
    return response.status, document, headers


@pytest.mark.asvs("6.3.1")
async def test_known_and_unknown_emails_get_the_same_response(
    start_app: StartApp, settings: Settings
) -> None:
    client = await start_app(require_email_verification=True)
    known = {"email": "known@example.com", "password": PASSWORD}
    assert (await client.post("/api/v1/auth/register", json=known)).status == 202
    wrong: list[str] = []
    count = 0
    for path, more in (
        ("/api/v1/auth/login", {"password": WRONG}),
        ("/api/v1/auth/login", {"password": PASSWORD}),
        ("/api/v1/auth/login", {"password": "x"}),
        (FORGOT, {}),
        ("/api/v1/auth/email/verify/resend", {}),
        ("/api/v1/auth/register", {"password": PASSWORD}),
    ):
        for unknown in ("unknown@example.com", "unknown@one.example", "known@one.example"):
            count += 1
            one = await shown(client, path, {**more, "email": "known@example.com"})
            two = await shown(client, path, {**more, "email": unknown})
            if one != two:
                wrong.append(f"{path}: {one} and {two}")
    report(wrong, count, 18)


# Headers from which other services take the client's IP.
FORGED = [
    *("X-Forwarded-For", "X-Real-IP", "X-Client-IP", "X-Cluster-Client-IP", "X-Originating-IP"),
    *("True-Client-IP", "CF-Connecting-IP", "Fastly-Client-IP", "X-Remote-IP", "X-Remote-Addr"),
    *("Forwarded", "Client-IP", "X-ProxyUser-IP", "X-Azure-ClientIP", "X-Envoy-External-Address"),
    *("Fly-Client-IP", "X-Forwarded", "Forwarded-For", "X-Original-Forwarded-For", "Via"),
]


async def guess(client: Client, email: str, header: str, number: int) -> int:
    ip = f"203.0.113.{number}"
    value = f"for={ip}" if header == "Forwarded" else ip
    body = {"email": email, "password": WRONG}
    response = await client.post("/api/v1/auth/login", json=body, headers={header: value})
    return response.status


@pytest.mark.asvs("6.3.1")
async def test_forged_client_ips_pass_no_limit(start_app: StartApp) -> None:
    """They count only if a trusted proxy sends them, and in the one header that it writes."""
    few = {"throttle_sign_in_per_ip": Rate(3, 3600)}
    client = await start_app(**few)
    statuses = [await guess(client, f"a{n}@example.com", "X-Real-IP", n) for n in range(4)]
    assert statuses == [401, 401, 401, 429]
    wrong = []
    for number, header in enumerate(FORGED):
        if await guess(client, f"b{number}@example.com", header, number) != 429:
            wrong.append(f"{header} passes the limit")
    proxied = await start_app(**few, trusted_proxies=(ip_network("127.0.0.0/8"),))
    for number, header in enumerate(FORGED):
        status = await guess(proxied, f"c{number}@example.com", header, number + 100)
        if status != (401 if header == "X-Forwarded-For" else 429):
            wrong.append(f"{header} of a trusted proxy: {status}")
    report(wrong, 2 * len(FORGED), 40)


@pytest.mark.asvs("6.3.1")
async def test_limit_of_an_account_counts_all_spellings_of_its_email(start_app: StartApp) -> None:
    client = await start_app(throttle_sign_in_per_account=Rate(3, 3600))
    mike = await register(client, email="mike@example.com")
    spellings = [
        "mike@example.com",
        "MIKE@example.com",
        "mike@EXAMPLE.com",
        "mi\u212ae@example.com",
    ]
    statuses = []
    for email in spellings:
        response = await send(client, "POST", "/auth/login", {"email": email, "password": WRONG})
        statuses.append(response.status)
    assert statuses == [401, 401, 401, 429]
    other = await register(client)
    assert (await sign_in(client, other)).status == 200
    assert mike.profile["email"] == "mike@example.com"


LISTED = "https://app.example"
UNLISTED = [
    *("null", "http://app.example", "https://app.example:443", "https://app.example:8443"),
    *("https://app.example/", "https://app.example.", "https://APP.example", "HTTPS://app.example"),
    *("https://app.example.evil.example", "https://evil-app.example", "https://evilapp.example"),
    *("https://sub.app.example", "https://app.example@evil", "https://appXexample"),
    *("https://app.example%60.evil.example", "https://app.example, https://evil.example"),
    *("https://evil.example", "file://", "chrome-extension://abc", "https://app.example#", "*"),
    *("https://app.example?", "//app.example", "app.example", "https:app.example", "https://"),
    *("https://xn--pp-kia.example", "https://user:x@app", "https://127.0.0.1", "data:,"),
]
METHODS = ("GET", "PATCH", "DELETE")


@pytest.mark.asvs("3.4.2", "3.5.1", "3.5.2")
async def test_only_the_listed_origin_may_read_or_ask(start_app: StartApp) -> None:
    client = await start_app(cors_origins=frozenset({LISTED}))
    account = await register(client)
    wrong: list[str] = []
    count = 0
    for origin in (*UNLISTED, LISTED):
        for method in METHODS:
            count += 1
            asked = {"Origin": origin, "Access-Control-Request-Method": method}
            preflight = await client.options("/api/v1/users/me", headers=asked)
            read = await client.get(
                "/api/v1/users/me", headers={**account.headers, "Origin": origin}
            )
            found = [
                preflight.status,
                preflight.headers.get("Access-Control-Allow-Origin"),
                read.headers.get("Access-Control-Allow-Origin"),
            ]
            expected = [204, LISTED, LISTED] if origin == LISTED else [403, None, None]
            if found != expected or "Access-Control-Allow-Credentials" in read.headers:
                wrong.append(f"{origin}, {method}: {found}")
    report(wrong, count, 90)
