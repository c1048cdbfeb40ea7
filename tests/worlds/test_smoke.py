from tests.support.clients import Client
from tests.support.factories import register


async def test_smoke(client: Client) -> None:
    a = await register(client)
    h = a.headers
    r = await client.post(
        "/api/v1/worlds/", headers=h, json={"name": "W", "laws": {"physics": "x"}}
    )
    assert r.status == 201, await r.text()
    w = await r.json()
    W = f"/api/v1/worlds/{w['id']}"
    print(w, r.headers)
    es = []
    for t in (3, 1, 2.5):
        r = await client.post(
            f"{W}/events",
            headers=h,
            json={"t": t, "type": "major", "summary": f"s{t}", "caused_by_ids": es[:1]},
        )
        assert r.status == 201, await r.text()
        es.append((await r.json())["id"])
    r = await client.get(f"{W}/events", headers=h)
    print(await r.json())
    r = await client.get(f"{W}/events?limit=2", headers=h)
    print(await r.json(), r.headers.get("Link"))
    r = await client.get(r.headers["Link"].split(">")[0][1:], headers=h)
    print(await r.json(), r.headers.get("Link"))
    r = await client.post(f"/api/v1/events/{es[0]}/dependencies/{es[1]}", headers=h)
    print(r.status, await r.text())
    r = await client.post(f"/api/v1/events/{es[2]}/dependencies/{es[1]}", headers=h)
    assert r.status == 204
    r = await client.put(f"/api/v1/events/{es[2]}", headers=h, json={"t": 9, "caused_by_ids": []})
    assert r.status == 200, await r.text()
    r = await client.post(
        f"{W}/stories", headers=h, json={"title": "S", "status": "in_progress", "tags": ["a"]}
    )
    assert r.status == 201, await r.text()
    s = await r.json()
    S = f"/api/v1/stories/{s['id']}"
    bs = []
    for n in range(3):
        r = await client.post(
            f"{S}/beats",
            headers=h,
            json={"content": f"hello world {n}", "beat_type": "log", "world_event_id": es[0]},
        )
        assert r.status == 201, await r.text()
        bs.append((await r.json())["id"])
    r = await client.post(f"{S}/beats", headers=h, json={"content": "first", "order_index": 1})
    assert r.status == 201, await r.text()
    r = await client.post(f"{S}/beats/reorder", headers=h, json={"beat_ids": bs})
    assert r.status == 400
    bs.append(bs[0])
    r = await client.post(f"{S}/beats/reorder", headers=h, json={"beat_ids": bs})
    print(await r.json())
    r = await client.get(f"{S}/beats", headers=h)
    ids = [b["id"] for b in await r.json()]
    r = await client.post(f"{S}/beats/reorder", headers=h, json={"beat_ids": ids[::-1]})
    print([(b["order_index"], b["content"]) for b in await r.json()])
    r = await client.get(f"{S}/statistics", headers=h)
    print(await r.json())
    r = await client.post(f"{S}/clone", headers=h)
    print(await r.json())
    r = await client.get(f"{W}/stories?tag=a", headers=h)
    print(len(await r.json()))
    r = await client.delete(f"{S}", headers=h)
    assert r.status == 204
    r = await client.get(f"{W}/stories/archived", headers=h)
    print(await r.json())
    r = await client.get(f"{W}/stories/tags", headers=h)
    print(await r.json())
    r = await client.delete(f"{S}?force=true", headers=h)
    assert r.status == 204
    r = await client.delete(f"/api/v1/events/{es[0]}", headers=h)
    assert r.status == 204
    r = await client.delete(W, headers=h)
    assert r.status == 204
    r = await client.get(W, headers=h)
    assert r.status == 404


async def test_views(client: Client) -> None:
    a = await register(client)
    h = a.headers
    w = await (
        await client.post("/api/v1/worlds", headers=h, json={"name": "W", "text_search": "english"})
    ).json()
    W = f"/api/v1/worlds/{w['id']}"
    es = [
        (
            await (
                await client.post(
                    f"{W}/events",
                    headers=h,
                    json={"t": t, "type": "major", "summary": f"The lamps {t} burning"},
                )
            ).json()
        )["id"]
        for t in range(3)
    ]
    await client.post(f"/api/v1/events/{es[1]}/dependencies/{es[0]}", headers=h)
    for n in range(3):
        s = await (await client.post(f"{W}/stories", headers=h, json={"title": f"S{n}"})).json()
        for e in es[: n + 1]:
            r = await client.post(
                f"/api/v1/stories/{s['id']}/beats",
                headers=h,
                json={"content": "the lamp <b>went</b> out", "world_event_id": e},
            )
            assert r.status == 201
    for path in (
        f"{W}/timeline",
        f"{W}/intersections",
        f"{W}/events/dependency-graph",
        f"/api/v1/events/{es[0]}/beats",
        f"{W}/search?q=lamp&limit=3",
        f"{W}/intersections?limit=2",
        f"{W}/search?q=the",
    ):
        r = await client.get(path, headers=h)
        print(path, r.status, await r.text(), r.headers.get("Link"))
        assert r.status == 200


async def test_transfer(client: Client) -> None:
    a = await register(client)
    h = a.headers
    w = await (await client.post("/api/v1/worlds", headers=h, json={"name": "W", "text_search": "english"})).json()
    W = f"/api/v1/worlds/{w['id']}"
    es = [(await (await client.post(f"{W}/events", headers=h, json={"t": t, "type": "major", "summary": f"The lamps {t} burning"})).json())["id"] for t in (3, 2, 1)]
    for c in es[1:]:
        await client.post(f"/api/v1/events/{es[0]}/dependencies/{c}", headers=h)
    for n in range(3):
        s = await (await client.post(f"{W}/stories", headers=h, json={"title": f"S{n}"})).json()
        for e in es[: n + 1]:
            r = await client.post(f"/api/v1/stories/{s['id']}/beats", headers=h, json={"content": "the lamp <b>went</b> out", "world_event_id": e})
            assert r.status == 201
    r = await client.get(f"{W}/export", headers=h)
    assert r.status == 200
    doc = await r.json()
    print(await r.text())
    r = await client.post("/api/v1/worlds/import", headers=h, json=doc)
    assert r.status == 201, await r.text()
    w2 = await r.json()
    r = await client.get(f"/api/v1/worlds/{w2['id']}/export", headers=h)
    print(await r.text())
    r = await client.post(f"{W}/duplicate", headers=h)
    assert r.status == 201, await r.text()
    print(await r.text())
    r = await client.get("/api/v1/users/me/export", headers=h)
    assert r.status == 200
    assert len((await r.json())["worlds"]) == 3
    doc["stories"][2]["story_beats"][1]["world_event_id"] = doc["stories"][0]["id"]
    r = await client.post("/api/v1/worlds/import", headers=h, json=doc)
    print(await r.text())
    doc["world_events"][0]["caused_by_ids"] = [doc["world_events"][-1]["id"]]
    r = await client.post("/api/v1/worlds/import", headers=h, json=doc)
    print(await r.text())
    r = await client.post("/api/v1/worlds/import", headers={**h, "Content-Type": "application/json"}, data=b'{"version":"1.0","world":{"name":"x"},"stories":[}')
    print(await r.text())
