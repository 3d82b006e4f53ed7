"""What users of OpenAI's SDKs ask for, as one table for all SDKs: fields, and what must come of them.

Every case runs whole and streamed, with each SDK; `judge` compares what came with what is
expected, and cases with each other (`same_as`, `unlike`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

MODEL = "SmolLM2-135M-Instruct"
QUESTION = [{"role": "user", "content": "Name three colours."}]
APIS: dict[str, dict[str, Any]] = {
    "chat": {"model": MODEL, "messages": QUESTION, "temperature": 0, "max_completion_tokens": 8},
    "plain": {"model": MODEL, "prompt": "The capital of France is", "temperature": 0, "max_tokens": 6},
    "response": {"model": MODEL, "input": QUESTION, "temperature": 0, "max_output_tokens": 8},
}
TOOL = {
    "type": "function",
    "function": {
        "name": "go",
        "parameters": {
            "type": "object",
            "properties": {"to": {"enum": ["left", "right"]}},
            "required": ["to"],
            "additionalProperties": False,
        },
    },
}
JSON = {
    "type": "json_schema",
    "json_schema": {"name": "pick", "schema": {"enum": ["red", "blue", 3]}, "strict": True},
}


@dataclass(frozen=True)
class Case:
    """One thing to ask for.

    Attributes:
        fields: beside those of APIS; None takes one away.
        same_as, unlike: names of cases with the same text, or another.
        text: what the whole of each text matches.
        finish: of each choice.
        usage: fields of it that must be so.
        choices: how many.
        logprobs: tokens that have them, over all choices.
        calls: of tools, by name.
        error: status, code, param.
        is_whole: streaming makes no sense.
    """

    name: str
    api: str
    fields: Mapping[str, Any] = field(default_factory=dict)
    same_as: str = ""
    unlike: str = ""
    text: str = ""
    finish: str = ""
    usage: Mapping[str, int] = field(default_factory=dict)
    choices: int = 1
    logprobs: int = 0
    calls: tuple[str, ...] = ()
    error: tuple[int, str, str | None] | None = None
    is_whole: bool = False

    def request(self, stream: bool) -> dict[str, Any]:
        """Return what a driver runs."""
        fields = {
            name: value for name, value in {**APIS[self.api], **self.fields}.items() if value is not None
        }
        if stream and self.api != "response":
            fields["stream_options"] = {"include_usage": True}
        name = f"{self.name} ({'streamed' if stream else 'whole'})"
        return {"name": name, "api": self.api, "stream": stream, "fields": fields}


def bad(
    name: str, api: str, fields: Mapping[str, Any], param: str | None, code: str = "invalid_argument"
) -> Case:
    return Case(name, api, fields, error=(404 if code == "model_not_found" else 400, code, param))


CASES = [
    Case("chat", "chat", finish="length", usage={"completion_tokens": 8}),
    Case("plain", "plain", text="(?s).*Paris.*", finish="length", usage={"completion_tokens": 6}),
    Case("response", "response", same_as="chat", finish="incomplete", usage={"completion_tokens": 8}),
    Case("max_tokens", "chat", {"max_completion_tokens": None, "max_tokens": 8}, same_as="chat"),
    Case("shorter", "chat", {"max_completion_tokens": 3}, finish="length", usage={"completion_tokens": 3}),
    Case(
        "parts of content",
        "chat",
        {"messages": [{"role": "user", "content": [{"type": "text", "text": QUESTION[0]["content"]}]}]},
        same_as="chat",
    ),
    Case("system turn", "chat", {"messages": [{"role": "system", "content": "Be brief."}, *QUESTION]}),
    Case(
        "developer turn",
        "chat",
        {"messages": [{"role": "developer", "content": "Be brief."}, *QUESTION]},
        same_as="system turn",
    ),
    Case("instructions", "response", {"instructions": "Be brief."}, same_as="system turn"),
    Case("input as text", "response", {"input": QUESTION[0]["content"]}, same_as="chat"),
    Case("one of the likeliest", "plain", {"temperature": 1, "top_k": 1}, same_as="plain"),
    Case("nucleus of one", "plain", {"temperature": 1, "top_p": 1e-6}, same_as="plain"),
    Case("least probability of one", "plain", {"temperature": 1, "min_p": 1}, same_as="plain"),
    Case("seed", "plain", {"temperature": 1.2, "seed": 7}),
    Case("seed again", "plain", {"temperature": 1.2, "seed": 7}, same_as="seed"),
    Case("another seed", "plain", {"temperature": 1.2, "seed": 8}, unlike="seed"),
    Case("seed of a response", "response", {"temperature": 1.2, "top_p": 0.9}),
    Case("stop", "plain", {"stop": " Paris"}, text="", finish="stop"),
    Case("stops", "plain", {"stop": ["zzz", "aris"]}, text=" P", finish="stop"),
    Case("stop across tokens", "chat", {"stop": ["zzzz", "qqqq"]}, same_as="chat"),
    Case("stop token", "plain", {"stop_token_ids": [7042]}, text="", finish="stop"),
    Case("bias", "plain", {"logit_bias": {"7042": 100}, "max_tokens": 3}, text=r"(.+)\1\1"),
    Case("bias against", "plain", {"logit_bias": {"7042": -100}}, unlike="plain"),
    Case(
        "frequency penalty", "plain", {"logit_bias": {"7042": 20}, "frequency_penalty": 2, "max_tokens": 20}
    ),
    Case("presence penalty", "plain", {"presence_penalty": 2, "max_tokens": 20}),
    Case("repetition penalty", "plain", {"repetition_penalty": 1.5, "max_tokens": 20}),
    Case("least tokens", "plain", {"min_tokens": 8, "max_tokens": 8}, usage={"completion_tokens": 8}),
    Case(
        "past the end",
        "plain",
        {"ignore_eos": True, "max_tokens": 20},
        finish="length",
        usage={"completion_tokens": 20},
    ),
    Case("n", "plain", {"n": 3, "temperature": 1, "seed": 1}, choices=3),
    Case("n of a chat", "chat", {"n": 2, "temperature": 1, "seed": 1}, choices=2),
    Case("best of", "plain", {"best_of": 3, "temperature": 1, "seed": 1}, is_whole=True),
    Case("echo", "plain", {"echo": True}, text="(?s)The capital of France is.*Paris.*"),
    Case(
        "scored prompt",
        "plain",
        {"echo": True, "logprobs": 1, "max_tokens": 0},
        text="The capital of France is",
        logprobs=5,
        usage={"completion_tokens": 0},
    ),
    Case("logprobs", "plain", {"logprobs": 2}, same_as="plain", logprobs=6),
    Case("logprobs of a chat", "chat", {"logprobs": True, "top_logprobs": 2}, same_as="chat", logprobs=8),
    Case("ids", "plain", {"prompt": [504, 3575, 282, 4649, 314]}),
    Case("several prompts", "plain", {"prompt": ["One, two,", "Red, green,"]}, choices=2),
    Case("several of ids", "plain", {"prompt": [[504, 3575], [504]], "max_tokens": 2}, choices=2),
    Case("of no effect", "plain", {"user": "me"}, same_as="plain"),
    Case("metadata", "chat", {"metadata": {"a": "b"}, "store": False, "user": "me"}, same_as="chat"),
    Case("urgent", "chat", {"priority": -10}, same_as="chat"),
    Case("own cache", "chat", {"cache_salt": "mine"}, same_as="chat"),
    Case(
        "json",
        "chat",
        {"response_format": JSON, "max_completion_tokens": 60},
        text='"red"|"blue"|3',
        finish="stop",
    ),
    Case(
        "json of a response",
        "response",
        {"text": {"format": {"type": "json_schema", "name": "pick", "schema": {"enum": ["red", 3]}}}},
        text='"red"|3',
        finish="completed",
    ),
    Case("text as format", "chat", {"response_format": {"type": "text"}}, same_as="chat"),
    Case(
        "choice",
        "plain",
        {"structured_outputs": {"choice": [" Rome", " Paris"]}},
        text=" Paris",
        finish="stop",
    ),
    Case(
        "tool",
        "chat",
        {"tools": [TOOL], "tool_choice": "required", "max_completion_tokens": 60},
        text="",
        finish="tool_calls",
        calls=("go",),
    ),
    Case(
        "named tool",
        "chat",
        {
            "tools": [TOOL],
            "tool_choice": {"type": "function", "function": {"name": "go"}},
            "max_completion_tokens": 60,
        },
        text="",
        finish="tool_calls",
        calls=("go",),
    ),
    Case("no tool", "chat", {"tools": [TOOL], "tool_choice": "none"}, same_as="chat"),
    Case(
        "tool of a response",
        "response",
        {
            "tools": [{"type": "function", **TOOL["function"], "strict": True}],
            "tool_choice": "required",
            "max_output_tokens": 60,
        },
        text="",
        finish="completed",
        calls=("go",),
    ),
    Case(
        "output of a tool",
        "response",
        {
            "input": [
                *QUESTION,
                {"type": "function_call", "call_id": "c1", "name": "go", "arguments": '{"to": "left"}'},
                {"type": "function_call_output", "call_id": "c1", "output": "A wall."},
            ]
        },
    ),
    bad("unknown model", "chat", {"model": "gpt-9"}, "model", "model_not_found"),
    bad("unknown field", "chat", {"temprature": 1}, "temprature"),
    bad("hot", "plain", {"temperature": 3}, "temperature"),
    bad("no messages", "chat", {"messages": []}, "messages"),
    bad("too long", "chat", {"max_completion_tokens": 100_000}, "max_tokens", "context_length_exceeded"),
    bad("empty prompt", "plain", {"prompt": ""}, "prompt"),
    bad("top_logprobs alone", "chat", {"top_logprobs": 1}, "top_logprobs"),
    bad(
        "schema",
        "chat",
        {
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "x", "schema": {"type": "objet"}},
            }
        },
        "response_format.json_schema.schema",
    ),
    bad("expression", "plain", {"structured_outputs": {"regex": "["}}, "structured_outputs.regex"),
    bad("tools of choice", "chat", {"tools": [TOOL]}, "tools"),
    bad("tools of a response", "response", {"tools": [{"type": "function", "name": "go"}]}, "tools"),
    bad(
        "output of no call",
        "response",
        {"input": [{"type": "function_call_output", "call_id": "c1", "output": "x"}]},
        "input[0].call_id",
    ),
    bad("kept", "response", {"previous_response_id": "resp_1"}, "previous_response_id"),
    bad("suffix", "plain", {"suffix": "x"}, "suffix"),
]


def requests() -> list[dict[str, Any]]:
    """Return what a driver is to run."""
    return [
        case.request(stream) for case in CASES for stream in (False, True) if not (stream and case.is_whole)
    ]


def judge(found: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return what is not as expected, given what came by name of request."""
    faults: list[str] = []
    for case in CASES:
        for stream in (False, True):
            name = case.request(stream)["name"]
            if not (stream and case.is_whole):
                faults += [f"{name}: {fault}" for fault in _faults(case, found[name], found, name)]
    return faults


def _faults(
    case: Case, came: Mapping[str, Any], found: Mapping[str, Mapping[str, Any]], name: str
) -> list[str]:
    if case.error is not None or "error" in came:
        error = came.get("error")
        got = error and (error["status"], error["code"], error["param"])
        return [] if got == case.error else [f"error {got}, expected {case.error}"]
    texts, usage = came["texts"], came["usage"]
    if usage is None:
        return ["no usage came"]
    checks = {
        f"{len(texts)} choices": len(texts) == case.choices,
        f"text {texts}": (not case.text and not case.calls and case.finish != "stop")
        or all(re.fullmatch(case.text, text) for text in texts),
        f"finish {came['finish']}": not case.finish or set(came["finish"]) == {case.finish},
        f"usage {usage}": all(usage[key] == value for key, value in case.usage.items())
        and usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
        and usage["prompt_tokens"] > 0,
        f"logprobs {came['logprobs']}": came["logprobs"] == case.logprobs,
        f"calls {came['calls']}": tuple(call[0] for call in came["calls"]) == case.calls,
    }
    faults = [f"{what}, not as in {case}" for what, ok in checks.items() if not ok]
    # What the same fields gave whole must come streamed.
    whole = found[case.request(False)["name"]]
    seeded = case.fields.get("temperature", 0) == 0 or "seed" in case.fields
    if seeded and "error" not in whole and texts != whole["texts"]:
        faults.append(f"{texts} streamed, {whole['texts']} whole")
    other = case.same_as or case.unlike
    if other:
        expected = found[f"{other} (whole)"].get("texts")
        if (texts == expected) != bool(case.same_as):
            faults.append(f"{texts} beside {expected} of {other!r}")
    return faults
