"""The HTTP API: OpenAI's routes, health and metrics."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence

from fastapi import FastAPI
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from baton.v1.sampling_pb2 import SamplingParams
from services.common.errors import BatonError
from services.common.logs import request_id_var
from services.gateway.generator import Generator
from services.gateway.http.exchange import JSON, Endpoint, Exchange, Handler
from services.gateway.http.formats import ChatFormat, Format, TextFormat
from services.gateway.http.params import (
    chat_input,
    chat_sampling,
    completion_inputs,
    completion_sampling,
)
from services.gateway.http.schema import ChatBody, CompletionBody, GenerationBody, parse_body
from services.gateway.http.streams import Answers
from services.gateway.request import Input, Request, prepare, replicate


def create_app(generator: Generator) -> FastAPI:
    """Return the ASGI app."""
    api = _Api(generator)
    handlers: dict[str, tuple[str, Handler]] = {
        "/v1/chat/completions": ("POST", api.chat),
        "/v1/completions": ("POST", api.completions),
        "/v1/models": ("GET", api.models),
        "/health": ("GET", api.health),
        "/ready": ("GET", api.ready),
        "/metrics": ("GET", api.metrics),
    }
    routes: list[BaseRoute] = [
        Route(path, Endpoint(handler, api.count_error), methods=[method])
        for path, (method, handler) in handlers.items()
    ]
    return FastAPI(
        title="Baton", openapi_url=None, routes=routes, exception_handlers={HTTPException: _http_error}
    )


class _Api:
    """The handlers."""

    def __init__(self, generator: Generator) -> None:
        self._generator = generator
        self._config = generator.config
        self._model = generator.model
        self._started = int(time.time())

    async def chat(self, exchange: Exchange) -> None:
        """POST /v1/chat/completions."""
        body = parse_body(ChatBody, await exchange.read_body(self._config.max_body_bytes))
        self._model.check_name(body.model)
        await self._answer(
            exchange, body, [chat_input(body)], chat_sampling(body), ChatFormat(self._model.tokenizer)
        )

    async def completions(self, exchange: Exchange) -> None:
        """POST /v1/completions."""
        body = parse_body(CompletionBody, await exchange.read_body(self._config.max_body_bytes))
        self._model.check_name(body.model)
        await self._answer(
            exchange,
            body,
            completion_inputs(body),
            completion_sampling(body),
            TextFormat(self._model.tokenizer),
        )

    async def models(self, exchange: Exchange) -> None:
        """GET /v1/models."""
        model = {"id": self._model.name, "object": "model", "created": self._started, "owned_by": "baton"}
        data = [model] if self._model.is_ready else []
        await exchange.answer(json.dumps({"object": "list", "data": data}).encode(), JSON)

    async def health(self, exchange: Exchange) -> None:
        """GET /health: the process answers."""
        await exchange.answer(b'{"status": "ok"}', JSON)

    async def ready(self, exchange: Exchange) -> None:
        """GET /ready: a prefill and a decode worker are there; 503 otherwise."""
        self._generator.admission.check_open()
        self._model.limits()
        await exchange.answer(b'{"status": "ready"}', JSON)

    async def metrics(self, exchange: Exchange) -> None:
        """GET /metrics: for Prometheus."""
        await exchange.answer(
            self._generator.metrics.render(), (b"content-type", CONTENT_TYPE_LATEST.encode())
        )

    async def _answer(
        self,
        exchange: Exchange,
        body: GenerationBody,
        inputs: Sequence[Input],
        sampling: SamplingParams,
        format: Format,
    ) -> None:
        request_id_var.set(exchange.request_id)
        num_choices = body.n or 1
        prepared: list[Request] = []
        for source in inputs:
            request = await prepare(
                self._model,
                source,
                sampling,
                priority=body.priority or 0,
                cache_salt=body.cache_salt or "",
                request_id=exchange.request_id,
                timeout_s=self._config.request_timeout_s,
            )
            prepared.extend(replicate(request, num_choices))
        sessions = self._generator.start(prepared)
        try:
            await Answers(sessions, num_choices, format, self._model.name).send(exchange, body)
        finally:
            for session in sessions:
                session.close()

    def count_error(self, error: BatonError) -> None:
        """Count an error by its reason."""
        self._generator.metrics.errors.labels(error.reason.name).inc()


async def _http_error(request: HttpRequest, error: HTTPException) -> Response:
    """Answer for a path or method that there is not, in OpenAI's shape."""
    known = {404: "no such path", 405: f"{request.method} is not allowed here"}
    body = {
        "message": f"{request.url.path}: {known.get(error.status_code, error.detail)}",
        "type": "invalid_request_error",
        "param": None,
        "code": None,
    }
    return JSONResponse({"error": body}, status_code=error.status_code, headers=error.headers)
