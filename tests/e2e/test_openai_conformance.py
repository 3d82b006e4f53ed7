"""One table of requests, whole and streamed, with OpenAI's SDKs for Python and Node, on the real model."""

from __future__ import annotations

import asyncio
import json
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import openai
from openai import AsyncOpenAI

from baton.client import Client
from baton.cluster import LocalCluster
from tests.support.languages import npm_install
from tests.support.openai_cases import judge, requests
from tests.support.traffic import hold_nothing, wait_for

DRIVER = Path(__file__).parent / "openai_node"
# Fields that the Python SDK does not name; it takes them beside the body.
_EXTENSIONS = (
    "top_k",
    "min_p",
    "repetition_penalty",
    "stop_token_ids",
    "min_tokens",
    "ignore_eos",
    "priority",
    "cache_salt",
    "structured_outputs",
    "temprature",
)


def test_node(cluster: LocalCluster, tmp_path: Path) -> None:
    at = npm_install(DRIVER, tmp_path / "node")
    done = subprocess.run(
        ["node", at / "run.js", f"{cluster.http_url}/v1"],
        input=json.dumps(requests()),
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    found = {one["name"]: one for one in map(json.loads, done.stdout.splitlines())}
    assert found.pop("leave")["parts"] >= 3
    assert len(found) == len(requests()) > 60
    assert judge(found) == []
    with Client(cluster.gateway_address) as client:
        wait_for("blocks given back", lambda: hold_nothing(client, cluster.workers), 5.0)


async def test_python(cluster: LocalCluster) -> None:
    at_once = asyncio.Semaphore(8)
    async with AsyncOpenAI(base_url=f"{cluster.http_url}/v1", api_key="none", max_retries=0) as client:

        async def one(request: Mapping[str, Any]) -> dict[str, Any]:
            async with at_once:
                return await run(client, request)

        found = {one["name"]: one for one in await asyncio.gather(*map(one, requests()))}
    assert len(found) == len(requests()) > 60
    assert judge(found) == []


async def run(client: AsyncOpenAI, request: Mapping[str, Any]) -> dict[str, Any]:
    """Run one request; see openai_node/run.js for what comes back."""
    api, stream = request["api"], request["stream"]
    fields = {name: value for name, value in request["fields"].items() if name not in _EXTENSIONS}
    extra = {name: value for name, value in request["fields"].items() if name in _EXTENSIONS}
    create: Any = {
        "chat": client.chat.completions.create,
        "plain": client.completions.create,
        "response": client.responses.create,
    }[api]
    found: dict[str, Any] = {
        "name": request["name"],
        "texts": {},
        "finish": [],
        "usage": None,
        "calls": [],
        "logprobs": 0,
    }
    try:
        answer = await create(**fields, extra_body=extra, stream=stream)
        parts = [part async for part in answer] if stream else [answer]
    except openai.APIStatusError as error:
        told = {"status": error.status_code, "type": error.type, "code": error.code, "param": error.param}
        return {"name": request["name"], "error": told}
    for part in parts:
        (_add_response if api == "response" else _add_choices)(found, part.model_dump())
    found["texts"] = [found["texts"][index] for index in sorted(found["texts"])]
    return found


def _add_choices(found: dict[str, Any], part: dict[str, Any]) -> None:
    for choice in part["choices"]:
        message = choice.get("delta") or choice.get("message") or {"content": choice.get("text")}
        found["texts"][choice["index"]] = found["texts"].get(choice["index"], "") + (message["content"] or "")
        if choice["finish_reason"]:
            found["finish"].append(choice["finish_reason"])
        logprobs = choice.get("logprobs") or {}
        found["logprobs"] += len(logprobs.get("content") or logprobs.get("tokens") or ())
        for call in message.get("tool_calls") or ():
            found["calls"].append([call["function"]["name"], call["function"]["arguments"]])
    found["usage"] = part["usage"] or found["usage"]


def _add_response(found: dict[str, Any], event: dict[str, Any]) -> None:
    response = event if event.get("object") == "response" else event.get("response")
    if event.get("type") == "response.output_text.delta":
        found["texts"][0] = found["texts"].get(0, "") + event["delta"]
    if response is None or response["status"] not in ("completed", "incomplete"):
        return
    calls = [item for item in response["output"] if item["type"] == "function_call"]
    found["calls"] += [[call["name"], call["arguments"]] for call in calls]
    said = [part["text"] for item in response["output"] for part in item.get("content") or ()]
    assert found["texts"].setdefault(0, "".join(said)) == "".join(said)
    found["finish"].append(response["status"])
    usage = response["usage"]
    found["usage"] = {
        "prompt_tokens": usage["input_tokens"],
        "completion_tokens": usage["output_tokens"],
        "total_tokens": usage["total_tokens"],
    }
