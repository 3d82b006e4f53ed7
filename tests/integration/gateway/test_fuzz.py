"""Bodies that nobody would send: an answer or a refusal, never a 500, and nothing is left behind."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from services.gateway.http.openapi import OPERATIONS
from tests.integration.gateway.conftest import MakeSetup

NUM_BODIES = 80
GOOD: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2},
    "/v1/completions": {"prompt": "hi", "max_tokens": 2},
    "/v1/responses": {"input": "hi", "max_output_tokens": 2},
    "/tokenize": {"prompt": "hi"},
    "/detokenize": {"tokens": [65]},
}
VALUES: list[Any] = [
    None, True, False, 0, 1, -1, 2, 15, 2**31, 2**32, 2**63, 2**64, 10**400, 0.5, -0.5, 1e308, "", "a", "é\0",
    "none", "auto", "tiny", [], [0], [1, 2], [[1], [2]], ["a", ""], [None], [[]], {}, {"a": 1}, {"1": 5.0},
    {"type": "text"}, [{"role": "user", "content": "x"}], [{"role": "x", "content": None}],
    [{"role": "assistant", "tool_calls": [{}]}], [{"type": "function", "function": {"name": "f"}}],
    {"messages": 1}, {"include_usage": True, "continuous_usage_stats": True}, {"strftime_now": 1},
]  # fmt: skip


@pytest.mark.parametrize("path", GOOD)
async def test_no_body_breaks_the_gateway(make_setup: MakeSetup, path: str) -> None:
    setup = await make_setup()
    body_class = OPERATIONS[path].body
    assert body_class is not None
    # Without a limit on tokens an answer fills the context, which takes long.
    names = sorted(body_class.model_fields.keys() - {"max_tokens", "max_output_tokens"})
    draw = random.Random(path)
    seen: set[int] = set()
    for _ in range(NUM_BODIES):
        body = dict(GOOD[path])
        for name in draw.sample(names, draw.choice((1, 1, 2))):
            body[name] = draw.choice(VALUES)
        response = await setup.http.post(path, content=json.dumps(body))
        assert response.status_code in (200, 400, 404), (body, response.text)
        if response.status_code != 200:
            assert response.json()["error"]["message"], body
        seen.add(response.status_code)
    assert {200, 400} <= seen
    await setup.nothing_held()
