"""The judge of the SDKs' conformance finds what is wrong."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.openai_cases import CASES, judge


def as_expected() -> dict[str, dict[str, Any]]:
    """Return made-up answers that are all as the table wants them."""
    found: dict[str, dict[str, Any]] = {}
    texts = {"stops": " P", "bias": "aaa", "echo": "The capital of France is Paris", "json": '"red"'}
    texts |= {"json of a response": '"red"', "choice": " Paris", "scored prompt": "The capital of France is"}
    texts |= {"stop": "", "stop token": "", "tool": "", "named tool": "", "tool of a response": ""}
    for case in CASES:
        text = texts.get(case.name) or texts.get(case.same_as, "" if case.name in texts else "Paris")
        usage = {"prompt_tokens": 5, "completion_tokens": 6, **case.usage}
        for stream in (False, True):
            name = case.request(stream)["name"]
            if case.error is not None:
                status, code, param = case.error
                found[name] = {"error": {"status": status, "code": code, "param": param, "type": ""}}
                continue
            found[name] = {
                "texts": [text + "?" if case.unlike else text] * case.choices,
                "finish": [case.finish or "length"] * case.choices,
                "usage": {**usage, "total_tokens": usage["prompt_tokens"] + usage["completion_tokens"]},
                "logprobs": case.logprobs,
                "calls": [[name, "{}"] for name in case.calls],
            }
    return found


def test_what_is_as_expected_has_no_fault() -> None:
    assert judge(as_expected()) == []


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_each_case_can_fail(case: Any) -> None:
    found = as_expected()
    name = case.request(False)["name"]
    found[name] = {"error": {"status": 500, "code": "internal", "param": None, "type": "server_error"}}
    assert any(fault.startswith(name) for fault in judge(found))
    if case.error is None:
        for field, wrong in (("texts", []), ("usage", None), ("logprobs", 99), ("calls", [["x", ""]])):
            found = as_expected()
            found[name][field] = wrong
            assert any(fault.startswith(name) for fault in judge(found)), field
