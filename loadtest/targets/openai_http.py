"""An OpenAI-compatible endpoint: streamed completions or chats as server-sent events."""

from __future__ import annotations

import json
import os

from loadtest.errors import RequestFailed
from loadtest.record import Call, Json
from loadtest.scenario import Scenario
from loadtest.targets.http import HttpClient

_PATHS = {"completions": "/v1/completions", "chat": "/v1/chat/completions"}
_KEY_VARIABLE = "OPENAI_API_KEY"


class OpenAIHttp:
    """Target for any OpenAI-compatible server; a key is taken from OPENAI_API_KEY.

    An event with text counts as one token, as no server says otherwise in each event; the count
    of the whole answer comes from the usage that ends the stream.
    """

    def __init__(self, scenario: Scenario) -> None:
        self._scenario = scenario
        self._client = HttpClient(scenario.target)
        self._model = scenario.model
        key = os.environ.get(_KEY_VARIABLE, "")
        self._headers = f"authorization: Bearer {key}\r\n" if key else ""

    async def open(self) -> None:
        """Ask which model there is, unless one was named."""
        parts: list[bytes] = []
        request = self._client.encode("GET", "/v1/models", headers=self._headers)
        status = await self._client.send(request, parts.append)
        if self._model:
            return
        if status != 200:
            raise _refusal(status, b"".join(parts))
        models = json.loads(b"".join(parts)).get("data", [])
        if len(models) != 1:
            names = ", ".join(str(model["id"]) for model in models)
            raise RequestFailed("MODEL_NOT_FOUND", f"name one of the models: {names or 'there is none'}")
        self._model = models[0]["id"]

    def prepare(self, call: Call) -> bytes:
        """Return the request's bytes."""
        scenario, request = self._scenario, call.request
        body: dict[str, Json] = {
            "model": self._model,
            "max_tokens": request.output_tokens,
            "temperature": scenario.temperature,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if scenario.api == "chat":
            body["messages"] = [{"role": "user", "content": str(call.prompt)}]
        else:
            body["prompt"] = call.prompt if isinstance(call.prompt, str) else [*call.prompt]
        if not scenario.stop_at_eos:
            body["ignore_eos"] = True
        if call.cache_salt:
            body["cache_salt"] = call.cache_salt
        return self._client.encode("POST", _PATHS[scenario.api], json.dumps(body).encode(), self._headers)

    async def answer(self, call: Call, wire: object) -> None:
        """Stream one answer into the call's record."""
        assert isinstance(wire, bytes)
        events = _Events(call)
        status = await self._client.send(wire, events.feed, call.request.read_delay_s)
        if status != 200:
            raise _refusal(status, events.whole())
        events.check_end()

    async def close(self) -> None:
        """Close the connections."""
        self._client.close()


class _Events:
    """Reads server-sent events, however the body was cut into pieces."""

    def __init__(self, call: Call) -> None:
        self._call = call
        self._rest = b""
        self._is_done = False
        self._others: list[bytes] = []

    def feed(self, piece: bytes) -> None:
        """Take the next piece of the body.

        Raises:
            RequestFailed: an event says so.
        """
        *lines, self._rest = (self._rest + piece).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                self._event(line[5:].strip())
            elif line.strip():
                self._others.append(line)

    def whole(self) -> bytes:
        """Return a body that was not made of events."""
        return b"\n".join([*self._others, self._rest])

    def check_end(self) -> None:
        """Raise RequestFailed unless the stream was whole."""
        if not self._is_done:
            raise RequestFailed("INCOMPLETE_STREAM", "the stream ended without [DONE]")

    def _event(self, data: bytes) -> None:
        if data == b"[DONE]":
            self._is_done = True
            return
        event = json.loads(data)
        if event.get("error"):
            raise _failure("STREAM_ERROR", event["error"])
        record = self._call.record
        for choice in event.get("choices", ()):
            delta = choice.get("delta")
            text = choice.get("text") if delta is None else _delta_text(delta)
            if text:
                self._call.tokens(1, text)
            if choice.get("finish_reason"):
                record.finish_reason = choice["finish_reason"]
        if usage := event.get("usage"):
            record.prompt_tokens = usage.get("prompt_tokens")
            record.completion_tokens = usage.get("completion_tokens")
            record.cached_tokens = (usage.get("prompt_tokens_details") or {}).get("cached_tokens")


def _delta_text(delta: dict[str, str | None]) -> str:
    return delta.get("content") or delta.get("reasoning_content") or delta.get("reasoning") or ""


def _refusal(status: int, body: bytes) -> RequestFailed:
    try:
        error = json.loads(body).get("error")
    except (ValueError, AttributeError):
        error = None
    return _failure(f"HTTP_{status}", error if error else body[:200].decode("utf-8", "replace"))


def _failure(reason: str, error: object) -> RequestFailed:
    if not isinstance(error, dict):
        return RequestFailed(reason, str(error))
    code = error.get("code") or error.get("type")
    return RequestFailed(str(code).upper() if code else reason, str(error.get("message", "")))
