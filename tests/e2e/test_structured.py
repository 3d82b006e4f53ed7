"""Forms of answers held by a real cluster and the real model: parsed and validated, every one."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jsonschema
import pytest
from openai import OpenAI

from baton.cluster import LocalCluster
from tests.support.json_schemas import MAX_TOKENS, QUESTIONS, record, text

AT_ONCE = 8


@pytest.fixture(scope="module")
def client(cluster: LocalCluster) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{cluster.http_url}/v1", api_key="none", max_retries=0) as made:
        yield made


def ask(client: OpenAI, question: str, schema: dict[str, Any], **fields: Any) -> str:
    """Return an answer, which must be JSON of the schema and have ended by itself."""
    answer = client.chat.completions.create(
        model="SmolLM2-135M-Instruct",
        messages=[{"role": "user", "content": question}],
        max_tokens=MAX_TOKENS,
        response_format={"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}},
        **fields,
    )
    (choice,) = answer.choices
    said = choice.message.content or ""
    assert choice.finish_reason == "stop", said
    jsonschema.validate(json.loads(said), schema, format_checker=jsonschema.FormatChecker())
    return said


def ask_all(client: OpenAI, tries: int) -> None:
    """Ask each question several times: greedily first, then more and more at random."""

    def one(question: str, schema: dict[str, Any], seed: int) -> str:
        return ask(client, question, schema, temperature=0.15 * seed, seed=seed)

    with ThreadPoolExecutor(AT_ONCE) as pool:
        asked = [
            [pool.submit(one, question, schema, seed) for seed in range(tries)]
            for question, schema in QUESTIONS
        ]
        texts = [{future.result() for future in futures} for futures in asked]
    assert sum(len(each) for each in texts) >= 10 * (1 + tries // 4), "not the same answer every time"


def test_json_of_a_schema(client: OpenAI) -> None:
    ask_all(client, tries=1)


@pytest.mark.matrix
def test_json_of_a_schema_in_100_of_100_tries(client: OpenAI) -> None:
    ask_all(client, tries=10)


def test_forms_besides_json(client: OpenAI) -> None:
    def complete(prompt: str, **asked: Any) -> str:
        answer = client.completions.create(
            model="SmolLM2-135M-Instruct",
            prompt=prompt,
            temperature=0,
            max_tokens=30,
            extra_body={"structured_outputs": asked},
        )
        assert answer.choices[0].finish_reason == "stop"
        return answer.choices[0].text

    assert complete("The capital of France is", choice=[" Paris", " Rome", " Oslo"]) == " Paris"
    assert re.fullmatch(r" (four|nine), (five|ten)", complete("One, two,", regex=r" (four|nine), (five|ten)"))
    counted = complete("Count: 1, 2,", grammar='start: " 3" ("," " " /[4-9]/){2,4} "."')
    assert re.fullmatch(r" 3(, [4-9]){2,4}\.", counted), counted


def test_a_call_that_is_demanded(client: OpenAI) -> None:
    place = record(city=text(20))
    tool: Any = {"type": "function", "function": {"name": "get_weather", "parameters": place, "strict": True}}
    for choice in ("required", {"type": "function", "function": {"name": "get_weather"}}):
        answer = client.chat.completions.create(
            model="SmolLM2-135M-Instruct",
            messages=[{"role": "user", "content": "What is the weather in Paris?"}],
            temperature=0,
            max_tokens=100,
            tools=[tool],
            tool_choice=choice,  # type: ignore[arg-type]
        )
        (made,) = answer.choices
        assert made.finish_reason == "tool_calls"
        (call,) = made.message.tool_calls or []
        assert call.type == "function"
        jsonschema.validate(json.loads(call.function.arguments), place)
