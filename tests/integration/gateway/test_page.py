"""The page's files and its data, without a browser; tests/e2e/test_page.py has one."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from services.gateway.config import LimitsConfig
from services.gateway.http.live import MAX_VIEWERS
from tests.integration.gateway.conftest import MakeSetup, Setup


async def live_events(setup: Setup) -> AsyncIterator[dict[str, Any]]:
    async with setup.http.stream("GET", "/cluster/live") as response:
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        async for line in response.aiter_lines():
            if line:
                yield json.loads(line.removeprefix("data: "))


async def test_the_page_is_whole_in_itself_and_strict(make_setup: MakeSetup) -> None:
    setup = await make_setup(0, 0)
    index = await setup.http.get("/")
    assert index.status_code == 200
    seen, todo = set(), {"/"}
    while todo:
        path = todo.pop()
        seen.add(path)
        response = await setup.http.get(path)
        assert response.status_code == 200, path
        policy = response.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert response.headers["x-content-type-options"] == "nosniff"
        text = response.text
        assert not re.search(r"https?://(?!www\.w3\.org/)", text), path
        assert not re.search(r"innerHTML|insertAdjacentHTML|eval\(|style=\"|onclick=", text), path
        found = re.findall(r"(?:src|href)=\"(/page/[^\"]+)\"", text)
        found += [f"/page/{name}" for name in re.findall(r"from \"\./([^\"]+)\"", text)]
        todo |= set(found) - seen
    assert {"/page/main.js", "/page/chat.js", "/page/cluster.js", "/page/timeline.js"} <= seen
    assert (await setup.http.get("/page/__init__.py")).status_code == 404
    assert (await setup.http.get("/page/../config.py")).status_code == 404


async def test_live_tells_of_workers_and_requests_as_they_change(make_setup: MakeSetup) -> None:
    setup = await make_setup()
    async with aclosing(live_events(setup)) as events:
        first = await anext(events)
        assert {worker["worker_id"] for worker in first["workers"]} == {"p0", "d0"}
        assert first["gateway"]["is_ready"] is True
        assert first["requests"] == []
        answer = await setup.generate(range(3, 40), max_tokens=5)
        shown: dict[str, Any] = {}
        while shown.get("outcome") != "ok":
            for request in (await anext(events))["requests"]:
                shown = request
        assert shown["request_id"] == answer.started.request_id
        assert (shown["prompt_tokens"], shown["tokens"], shown["retries"]) == (37, 5, 0)
        kinds = [bar["kind"] for bar in shown["bars"]]
        assert kinds[:2] == ["queue", "prefill_queue"]
        assert set(kinds[2:]) == {"handoff", "decode"}  # the scripted worker tells of no chunks
        ends = [bar["end_s"] for bar in shown["bars"]]
        assert all(end is not None and end <= shown["total_s"] + 1e-3 for end in ends)
        await setup.workers.kill("p0")
        async with asyncio.timeout(10):
            while any(worker["worker_id"] == "p0" for worker in (await anext(events))["workers"]):
                pass
    # Whoever comes later gets the recent requests too.
    async with aclosing(live_events(setup)) as events:
        assert [one["key"] for one in (await anext(events))["requests"]] == [shown["key"]]


async def test_a_lost_attempt_shows_and_the_next_one_goes_on(make_setup: MakeSetup) -> None:
    setup = await make_setup(1, 2)
    call = setup.call(range(3, 20), max_tokens=200)
    async for response in call:
        if response.HasField("delta"):
            break
    (timeline,) = setup.generator.timelines
    worker = next(bar.worker for bar in timeline.bars if bar.kind == "decode")
    setup.workers.decodes[worker].break_streams()
    async with asyncio.timeout(10):
        while len([bar for bar in timeline.bars if bar.kind == "decode"]) < 2:
            await asyncio.sleep(0.01)
    lost = [bar for bar in timeline.bars if bar.failed]
    assert {bar.kind for bar in lost} == {"decode"}
    assert timeline.retries == 1
    call.cancel()
    await setup.nothing_held()
    async with asyncio.timeout(5):
        while timeline.outcome == "running":
            await asyncio.sleep(0.01)
    assert timeline.outcome == "cancelled"


async def test_viewers_are_limited_and_let_go(make_setup: MakeSetup) -> None:
    setup = await make_setup(0, 0)
    url = setup.gateway.http_address.split(":")
    open_ones = []
    for _ in range(MAX_VIEWERS):
        reader, writer = await asyncio.open_connection(url[0], int(url[1]))
        writer.write(b"GET /cluster/live HTTP/1.1\r\nhost: x\r\n\r\n")
        await reader.readuntil(b"data:")
        open_ones.append(writer)
    assert (await setup.http.get("/cluster/live")).status_code == 429
    for writer in open_ones:
        writer.close()
    async with asyncio.timeout(5):
        while True:
            async with setup.http.stream("GET", "/cluster/live") as response:
                if response.status_code == 200:
                    break
            await asyncio.sleep(0.05)


async def test_waiting_in_the_gateway_is_a_bar_of_its_own(make_setup: MakeSetup) -> None:
    setup = await make_setup(limits=LimitsConfig(max_running=1))
    await asyncio.gather(*(setup.generate(range(3 + i, 20 + i), max_tokens=20) for i in range(2)))
    timelines = sorted(setup.generator.timelines, key=lambda one: one.received_s)
    waits = [[bar for bar in one.bars if bar.kind == "queue" and not bar.worker] for one in timelines]
    (bar,) = waits[1]
    assert bar.end_s is not None
    assert bar.end_s - bar.begin_s > 0.02
