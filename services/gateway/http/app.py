"""The HTTP API: its routes, and the handlers that generate nothing."""

from __future__ import annotations

import json
import time

from fastapi import FastAPI
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from services.common.errors import BatonError
from services.gateway.access import ANYBODY, Caller
from services.gateway.generator import Generator
from services.gateway.http.docs_page import render_docs
from services.gateway.http.exchange import JSON, Access, Endpoint, Exchange, Handler
from services.gateway.http.generation import GenerationApi
from services.gateway.http.live import LiveApi
from services.gateway.http.openapi import describe_api
from services.gateway.http.responses import ResponsesApi
from services.gateway.http.static import StaticFiles
from services.gateway.http.tokens import TokensApi
from services.gateway.http.values import Json

# For everybody: they tell nothing of any request. All that is not named here needs a key.
OPEN_PATHS = frozenset({"/", "/docs", "/openapi.json", "/health", "/ready"})
# For keys that may see the cluster.
CLUSTER_PATHS = frozenset({"/metrics", "/cluster/live"})


def create_app(generator: Generator) -> ASGIApp:
    """Return the ASGI app.

    Paths without parameters go straight to their endpoints: what a framework puts around them would be
    paid for with every event of a stream. It answers the rest, and for methods and paths that there are not.
    """
    api = _Api(generator)
    generation = GenerationApi(generator)
    tokens = TokensApi(generator)
    handlers: dict[str, tuple[str, Handler]] = {
        "/v1/chat/completions": ("POST", generation.chat),
        "/v1/completions": ("POST", generation.completions),
        "/v1/responses": ("POST", ResponsesApi(generator).create),
        "/v1/models": ("GET", api.models),
        "/v1/models/{model:path}": ("GET", api.model),
        "/tokenize": ("POST", tokens.tokenize),
        "/detokenize": ("POST", tokens.detokenize),
        "/docs": ("GET", api.docs),
        "/openapi.json": ("GET", api.openapi),
        "/health": ("GET", api.health),
        "/ready": ("GET", api.ready),
        "/metrics": ("GET", api.metrics),
        "/cluster/live": ("GET", LiveApi(generator).stream),
        **{path: ("GET", handler) for path, handler in StaticFiles().handlers().items()},
    }
    endpoints = {
        (method, path): Endpoint(handler, api.count_error, access_to(path, generator))
        for path, (method, handler) in handlers.items()
    }
    routes: list[BaseRoute] = [
        Route(path, endpoint, methods=[method]) for (method, path), endpoint in endpoints.items()
    ]
    framework = FastAPI(
        title="Baton", openapi_url=None, routes=routes, exception_handlers={HTTPException: _http_error}
    )

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        endpoint = endpoints.get((scope.get("method", ""), scope.get("path", "")))
        await (endpoint or framework)(scope, receive, send)

    return app


def access_to(path: str, generator: Generator) -> Access:
    """Return what says whose request a call of `path` is, and refuses it if it is nobody's."""
    callers = generator.callers

    def identify(authorization: str) -> Caller:
        caller = callers.identify(authorization)
        if path in CLUSTER_PATHS:
            caller.check_sees_cluster()
        return caller

    is_open = path in OPEN_PATHS or path.startswith("/page/")
    return identify_nobody if is_open else identify


def identify_nobody(authorization: str) -> Caller:
    """Let everybody in."""
    return ANYBODY


class _Api:
    """The handlers."""

    def __init__(self, generator: Generator) -> None:
        self._generator = generator
        self._model = generator.model
        self._started = int(time.time())
        document = describe_api()
        self._openapi = json.dumps(document).encode()
        self._docs = render_docs(document)

    async def models(self, exchange: Exchange) -> None:
        """GET /v1/models."""
        data = [self._describe()] if self._model.is_ready else []
        await exchange.answer(json.dumps({"object": "list", "data": data}).encode(), JSON)

    async def model(self, exchange: Exchange) -> None:
        """GET /v1/models/{model}."""
        self._model.check_name(exchange.path_params["model"])
        await exchange.answer(json.dumps(self._describe()).encode(), JSON)

    async def docs(self, exchange: Exchange) -> None:
        """GET /docs: a page for people."""
        await exchange.answer(self._docs, (b"content-type", b"text/html; charset=utf-8"))

    async def openapi(self, exchange: Exchange) -> None:
        """GET /openapi.json: the same for programs."""
        await exchange.answer(self._openapi, JSON)

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

    def count_error(self, error: BatonError) -> None:
        """Count an error by its reason."""
        self._generator.metrics.errors.labels(error.reason.name).inc()

    def _describe(self) -> dict[str, Json]:
        return {"id": self._model.name, "object": "model", "created": self._started, "owned_by": "baton"}


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
