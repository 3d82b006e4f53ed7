"""The OpenAPI description of the HTTP API, made from the classes that parse and show its bodies."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from services.gateway.http.answer_schema import (
    ChatCompletion,
    Detokenized,
    ErrorAnswer,
    ModelAnswer,
    ModelList,
    ResponseAnswer,
    StatusAnswer,
    TextCompletion,
    Tokenized,
)
from services.gateway.http.responses_schema import ResponsesBody
from services.gateway.http.schema import ChatBody, CompletionBody, Strict
from services.gateway.http.text_schema import DetokenizeBody, TokenizeBody
from services.gateway.http.values import Json

_REF = "#/components/schemas/"
# OpenAPI 3.1 has no word for the items of a stream: the schema is that of each event.
_EVENT: Json = {
    "type": "object",
    "description": "One server-sent event.",
    "properties": {"event": {"type": "string"}, "data": {"type": "string"}},
    "required": ["data"],
    "additionalProperties": False,
}


@dataclass(frozen=True, slots=True)
class Operation:
    """One route.

    Attributes:
        body: None: it takes none.
        answer: None: plain text.
    """

    method: str
    summary: str
    body: type[Strict] | None
    answer: type[BaseModel] | None
    streams: bool = False


OPERATIONS: dict[str, Operation] = {
    "/v1/chat/completions": Operation("post", "Answer a conversation", ChatBody, ChatCompletion, True),
    "/v1/completions": Operation("post", "Continue texts or token ids", CompletionBody, TextCompletion, True),
    "/v1/responses": Operation("post", "Answer text or messages", ResponsesBody, ResponseAnswer, True),
    "/v1/models": Operation("get", "List the models", None, ModelList),
    "/v1/models/{model}": Operation("get", "Describe a model", None, ModelAnswer),
    "/tokenize": Operation("post", "Turn text or a conversation into token ids", TokenizeBody, Tokenized),
    "/detokenize": Operation("post", "Turn token ids into text", DetokenizeBody, Detokenized),
    "/health": Operation("get", "Tell whether the process answers", None, StatusAnswer),
    "/ready": Operation("get", "Tell whether workers are ready", None, StatusAnswer),
    "/metrics": Operation("get", "Metrics for Prometheus", None, None),
}


def describe_api() -> dict[str, Json]:
    """Return the document, OpenAPI 3.1."""
    return {
        "openapi": "3.1.0",
        "info": {"title": "Baton", "version": "1", "description": "An OpenAI-compatible endpoint."},
        "paths": {path: {one.method: _operation(path, one)} for path, one in OPERATIONS.items()},
        "components": {"schemas": _schemas()},
    }


def _operation(path: str, operation: Operation) -> dict[str, Json]:
    success: dict[str, Json] = {"text/plain": {"schema": {"type": "string"}}}
    if operation.answer is not None:
        success = {"application/json": {"schema": _ref(operation.answer)}}
    if operation.streams:
        success["text/event-stream"] = {"schema": _EVENT}
    error: Json = {"application/json": {"schema": _ref(ErrorAnswer)}}
    described: dict[str, Json] = {
        "summary": operation.summary,
        "responses": {
            "200": {"description": "The answer", "content": success},
            "default": {"description": "Why there is none", "content": error},
        },
    }
    if "{model}" in path:
        described["parameters"] = [
            {"name": "model", "in": "path", "required": True, "schema": {"type": "string"}}
        ]
    if operation.body is not None:
        content: Json = {"application/json": {"schema": _ref(operation.body)}}
        described["requestBody"] = {"required": True, "content": content}
    return described


def _schemas() -> dict[str, Json]:
    """Return the schemas; fields that are not supported list the values that ask for nothing."""
    bodies = [one.body for one in OPERATIONS.values() if one.body is not None]
    answers = [one.answer for one in OPERATIONS.values() if one.answer is not None]
    models: list[type[BaseModel]] = [*bodies, *answers, ErrorAnswer]
    _, document = models_json_schema(
        [(model, "validation") for model in dict.fromkeys(models)], ref_template=_REF + "{model}"
    )
    schemas: dict[str, Json] = document["$defs"]
    for body in bodies:
        properties = document["$defs"][body.__name__]["properties"]
        for name, values in body.neutral.items():
            reason = body.refusals.get(name, "this is not supported")
            properties[name] = {"enum": list(values), "default": None, "description": f"Refused: {reason}."}
    return schemas


def _ref(model: type[BaseModel]) -> dict[str, Json]:
    return {"$ref": _REF + model.__name__}
