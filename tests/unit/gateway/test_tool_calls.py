from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.gateway.text.tool_calls import ToolCall, ToolFormat, detect_format, make_parser

NAMES = frozenset({"f", "get_weather"})
HERMES, MISTRAL, LLAMA3 = ToolFormat.HERMES, ToolFormat.MISTRAL, ToolFormat.LLAMA3


def parse(format: ToolFormat, pieces: list[str]) -> tuple[str, list[ToolCall]]:
    parser = make_parser(format, NAMES)
    found = [parser.push(piece) for piece in pieces] + [parser.flush()]
    return "".join(text for text, _ in found), [call for _, calls in found for call in calls]


F = ToolCall("f", "{}")
PARIS = ToolCall("get_weather", '{"city": "Paris"}')
PARIS_JSON = '{"name": "get_weather", "arguments": {"city": "Paris"}}'
PARIS_PARAMETERS = '{"name": "get_weather", "parameters": {"city": "Paris"}}'
IN_STRING = '{"name": "f", "arguments": {"a": "</tool_call> é"}}'

CASES = [
    (HERMES, "Hello <b>you</b>.\n", "Hello <b>you</b>.\n", []),
    (HERMES, f"<tool_call>\n{PARIS_JSON}\n</tool_call>", "", [PARIS]),
    (
        HERMES,
        f"Let me see.\n<tool_call>{PARIS_JSON}</tool_call>\n<tool_call>{PARIS_JSON}</tool_call>\n",
        "Let me see.",
        [PARIS, PARIS],
    ),
    (HERMES, f"<tool_call>{PARIS_JSON}", "", [PARIS]),
    (
        HERMES,
        f"<tool_call>{IN_STRING}</tool_call>",
        "",
        [ToolCall("f", '{"a": "</tool_call> é"}')],
    ),
    (HERMES, '<tool_call>{"name": "f"</tool_call> x', '<tool_call>{"name": "f"</tool_call> x', []),
    (
        HERMES,
        '<tool_call>{"name": "other", "arguments": {}}</tool_call>',
        '<tool_call>{"name": "other", "arguments": {}}</tool_call>',
        [],
    ),
    (HERMES, '<tool_call>{"name": "f", "argu', '<tool_call>{"name": "f", "argu', []),
    (HERMES, '<tool_call>{"name": "f", "arguments": "{}"}</tool_call>', "", [F]),
    (HERMES, '<tool_call>{"name": "f", "arguments": [1]}</tool_call>', None, []),
    (HERMES, "<tool_call", "<tool_call", []),
    (HERMES, '<tool_call>{"name": "f", "arguments": {"a": NaN}}</tool_call>', None, []),
    (HERMES, '<tool_call>{"name": ["f"], "arguments": {}}</tool_call>', None, []),
    (HERMES, f"<tool_call>{'[' * 5000}</tool_call>", None, []),
    (HERMES, f"<tool_call>{'1' * 5000}</tool_call>", None, []),
    (
        HERMES,
        r'<tool_call>{"name": "f", "arguments": {"a": "\ud800"}}</tool_call>',
        "",
        [ToolCall("f", r'{"a": "\ud800"}')],
    ),
    (LLAMA3, '{"a":' * 5000, None, []),
    (MISTRAL, "Just [TEXT].", "Just [TEXT].", []),
    (MISTRAL, f"[TOOL_CALLS][{PARIS_JSON}, {PARIS_JSON}]", "", [PARIS, PARIS]),
    (MISTRAL, f"Well. [TOOL_CALLS] [{PARIS_JSON}]", "Well. ", [PARIS]),
    (MISTRAL, '[TOOL_CALLS]get_weather[ARGS]{"city": "Paris"}', "", [PARIS]),
    (MISTRAL, '[TOOL_CALLS]get_weather{"city": "Paris"}[TOOL_CALLS]f[CALL_ID]ab1[ARGS]{}', "", [PARIS, F]),
    (MISTRAL, "[TOOL_CALLS] what", "[TOOL_CALLS] what", []),
    (MISTRAL, "[TOOL_CALLS]f[ARGS]{", "[TOOL_CALLS]f[ARGS]{", []),
    (LLAMA3, "Plain {text}", "Plain {text}", []),
    (LLAMA3, PARIS_PARAMETERS, "", [PARIS]),
    (LLAMA3, f"\n<|python_tag|>{PARIS_PARAMETERS}; {PARIS_PARAMETERS}", "", [PARIS, PARIS]),
    (LLAMA3, '{"name": "x", "parameters": {}}', '{"name": "x", "parameters": {}}', []),
    (LLAMA3, '{"answer": 42}', '{"answer": 42}', []),
    (LLAMA3, PARIS_PARAMETERS + " and so on", PARIS_PARAMETERS + " and so on", []),
    (LLAMA3, "<|python", "<|python", []),
    (LLAMA3, '{"name": "f"', '{"name": "f"', []),
]


@pytest.mark.parametrize(("format", "text", "shown", "calls"), CASES)
def test_whole_and_char_by_char(
    format: ToolFormat, text: str, shown: str | None, calls: list[ToolCall]
) -> None:
    expected = (text if shown is None else shown, calls)
    assert parse(format, [text]) == expected
    assert parse(format, list(text)) == expected


PIECES = [
    "<tool_call>",
    "</tool_call>",
    '{"name": "f", "arguments": {}}',
    "[TOOL_CALLS]",
    "f[ARGS]{}",
    "<|python_tag|>",
    " ",
    "\n",
    "a",
    "{",
]


@given(st.sampled_from(list(ToolFormat)), st.lists(st.sampled_from(PIECES), max_size=8))
def test_how_the_text_was_cut_does_not_matter(format: ToolFormat, pieces: list[str]) -> None:
    text = "".join(pieces)
    assert parse(format, pieces) == parse(format, list(text)) == parse(format, [text])


@given(st.text(alphabet='ab<>[]{}"\n té_olcTOOL_CALLS|', max_size=40))
def test_text_without_calls_is_not_changed(text: str) -> None:
    for format in ToolFormat:
        assert parse(format, [text]) == (text, [])


@given(
    st.dictionaries(st.text(max_size=5), st.text(max_size=8), max_size=3),
    st.sampled_from([(HERMES, "<tool_call>{}</tool_call>"), (MISTRAL, "[TOOL_CALLS][{}]"), (LLAMA3, "{}")]),
)
def test_any_arguments_survive(arguments: dict[str, str], how: tuple[ToolFormat, str]) -> None:
    format, frame = how
    text = frame.replace("{}", json.dumps({"name": "f", "arguments": arguments}))
    shown, calls = parse(format, list(text))
    assert shown == ""
    assert [(call.name, json.loads(call.arguments)) for call in calls] == [("f", arguments)]


def test_text_before_a_call_comes_at_once() -> None:
    parser = make_parser(HERMES, NAMES)
    assert parser.push("One two ")[0] == "One two"
    assert parser.push("three")[0] == " three"
    assert parser.push(f"<tool_call>{PARIS_JSON}</tool_call>") == ("", [PARIS])


@pytest.mark.parametrize(
    ("template", "format"),
    [
        ("{{ '<tool_call>' }}", HERMES),
        ("[TOOL_CALLS]", MISTRAL),
        ('{"name": function name, "parameters": ...}', LLAMA3),
        ("<|python_tag|>", LLAMA3),
        ("<tool_call><function=name>", None),
        ("{{ message.content }}", None),
    ],
)
def test_the_template_tells_the_format(template: str, format: ToolFormat | None) -> None:
    assert detect_format(template) is format
