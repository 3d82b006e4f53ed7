"""The OpenAPI page: complete, whole in itself, and true to the answers."""

from __future__ import annotations

import json
import re
from typing import Any

import httpx
import pytest
from pydantic import BaseModel

from services.gateway.http.answer_schema import ErrorAnswer
from services.gateway.http.openapi import OPERATIONS, describe_api
from tests.integration.gateway.conftest import MakeSetup

MESSAGES = [{"role": "user", "content": "hi"}]

ANSWERED: list[tuple[str, str, dict[str, Any] | None]] = [
    ("/v1/chat/completions", "", {"messages": MESSAGES, "max_tokens": 3}),
    (
        "/v1/chat/completions",
        "",
        {"messages": MESSAGES, "max_tokens": 3, "logprobs": True, "top_logprobs": 2},
    ),
    ("/v1/completions", "", {"prompt": "hi", "max_tokens": 3}),
    ("/v1/completions", "", {"prompt": ["a", "b"], "n": 2, "max_tokens": 3, "logprobs": 2}),
    ("/v1/responses", "", {"input": "hi", "max_output_tokens": 3, "top_logprobs": 1}),
    ("/v1/models", "", None),
    ("/v1/models/{model}", "/v1/models/tiny", None),
    ("/tokenize", "", {"prompt": "hi", "return_token_strs": True}),
    ("/detokenize", "", {"tokens": [70, 71]}),
    ("/health", "", None),
    ("/ready", "", None),
]


async def call(http: httpx.AsyncClient, path: str, body: dict[str, Any] | None) -> httpx.Response:
    return await (http.get(path) if body is None else http.post(path, json=body))


@pytest.mark.parametrize(("path", "real_path", "body"), ANSWERED)
async def test_answers_are_as_described(
    make_setup: MakeSetup, path: str, real_path: str, body: dict[str, Any] | None
) -> None:
    setup = await make_setup()
    response = await call(setup.http, real_path or path, body)
    assert response.status_code == 200
    model = OPERATIONS[path].answer
    assert model is not None
    assert isinstance(model.model_validate_json(response.content), BaseModel)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", {}),
        ("/v1/chat/completions", {"messages": 1}),
        ("/v1/nothing", {}),
        ("/v1/models/x", None),
    ],
)
async def test_errors_are_as_described(make_setup: MakeSetup, path: str, body: dict[str, Any] | None) -> None:
    setup = await make_setup()
    response = await call(setup.http, path, body)
    assert response.status_code in (400, 404)
    assert ErrorAnswer.model_validate_json(response.content).error.message


async def test_every_route_is_described(make_setup: MakeSetup) -> None:
    setup = await make_setup()
    document = (await setup.http.get("/openapi.json")).json()
    assert document == json.loads(json.dumps(describe_api()))
    for path, item in document["paths"].items():
        (method,) = item
        assert (await setup.http.request("PUT", path.format(model="tiny"))).status_code == 405
        found = await setup.http.request(method, path.format(model="tiny"))
        assert found.status_code in (200, 400)  # 400: the body is missing
    page = (await setup.http.get("/docs")).text
    for path in OPERATIONS:
        assert f"{path}</code></h2>" in page
    assert not re.search(r"https?://|\bsrc=|<link|<script", page)


def test_references_lead_somewhere_and_no_field_is_missing() -> None:
    document = json.dumps(describe_api())
    schemas = json.loads(document)["components"]["schemas"]
    references = set(re.findall(r'"#/components/schemas/(\w+)"', document))
    assert references <= set(schemas)
    for operation in OPERATIONS.values():
        if operation.body is not None:
            schema = schemas[operation.body.__name__]
            assert set(schema["properties"]) == set(operation.body.model_fields)
            assert schema["additionalProperties"] is False


def test_what_is_not_supported_says_so() -> None:
    schemas: Any = json.loads(json.dumps(describe_api()))["components"]["schemas"]
    suffix = schemas["CompletionBody"]["properties"]["suffix"]
    assert suffix["enum"] == [None, ""]
    assert "Refused" in suffix["description"]
    assert "not stored" in schemas["ResponsesBody"]["properties"]["store"]["description"]
