"""Every parameter that the official SDK offers is known: honoured, of no effect, or refused with a reason."""

from __future__ import annotations

import inspect
from collections.abc import Callable

import pytest
from openai import OpenAI

from services.gateway.http.responses_schema import ResponsesBody
from services.gateway.http.schema import ChatBody, CompletionBody, Strict

CLIENT = OpenAI(api_key="none", base_url="http://localhost")
OF_THE_SDK = {"self", "extra_headers", "extra_query", "extra_body", "timeout"}


@pytest.mark.parametrize(
    ("create", "body"),
    [
        (CLIENT.chat.completions.create, ChatBody),
        (CLIENT.completions.create, CompletionBody),
        (CLIENT.responses.create, ResponsesBody),
    ],
)
def test_every_parameter_is_known(create: Callable[..., object], body: type[Strict]) -> None:
    names = set(inspect.signature(create).parameters) - OF_THE_SDK
    assert len(names) > 15
    assert names - set(body.model_fields) == set()
    assert set(body.neutral) <= set(body.model_fields)
