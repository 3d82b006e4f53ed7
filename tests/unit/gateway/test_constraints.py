"""What grammars take and refuse, as workers would hold answers to them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import llguidance
import pytest

from baton.v1.sampling_pb2 import Choice, Grammar
from services.common.errors import BatonError
from services.gateway.constraints.grammar import MAX_GRAMMAR_BYTES, after_thinking, json_rule, lower_grammar
from services.gateway.constraints.tool_calls import CallableTool, Demand, calls_lark
from services.gateway.text.tokenizer import Tokenizer
from services.gateway.text.tool_calls import ToolCall, ToolFormat, make_parser
from tests.support.byte_tokenizer import write_byte_tokenizer

MARKS = ("<tool_call>", "</tool_call>", "[TOOL_CALLS]")
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 2},
        "home": {"$ref": "#/$defs/place"},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
    "$defs": {"place": {"type": "object", "properties": {"city": {"const": "Łódź"}}, "required": ["city"]}},
}


class Model:
    """A byte-level model's view of grammars."""

    def __init__(self, directory: Path, special_tokens: tuple[str, ...] = ()) -> None:
        write_byte_tokenizer(directory, special_tokens=special_tokens)
        self.tokenizer = Tokenizer(directory)
        text = (directory / "tokenizer.json").read_text()
        self._ll = llguidance.LLTokenizer(text, eos_token=2)

    def takes(self, grammar: str, text: str) -> bool:
        """Whether a text is a sentence of a grammar."""
        matcher = llguidance.LLMatcher(self._ll, grammar, log_level=0)
        assert not matcher.is_error(), matcher.get_error()
        ids = self.tokenizer.encode(text, add_special_tokens=False)
        return matcher.try_consume_tokens(ids) == len(ids) and matcher.is_accepting()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return Model(tmp_path_factory.mktemp("plain"))


@pytest.fixture(scope="module")
def marked_model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """One whose marks of tool calls are control tokens."""
    return Model(tmp_path_factory.mktemp("marked"), MARKS)


def lark(text: str) -> Grammar:
    return Grammar(lark=text)


def schema(value: object) -> Grammar:
    return Grammar(json_schema=json.dumps(value))


@pytest.mark.parametrize(
    ("grammar", "taken", "refused"),
    [
        (
            schema(PERSON),
            [
                '{"name": "Žofia ☃", "age": 33}',
                '{"name": "", "age": 0, "tags": ["a", "b"], "home": {"city": "Łódź"}}',
            ],
            [
                '{"name":"x","age":1}',
                '{"name": "x"}',
                '{"name": "x", "age": 151}',
                '{"name": "x", "age": 1, "tags": ["c"]}',
                '{"name": "x", "age": 1, "more": 1}',
                '{"name": "123456789", "age": 1}',
                '{"name": "x", "age": 1} ',
            ],
        ),
        (
            schema({"type": "object"}),
            ["{}", '{"a": [1, -2.5e3, null, true], "b": {"c": "\\n"}}'],
            ["[]", "{ }", ""],
        ),
        (Grammar(regex=r"[a-z]{2,3}/\d+|x\n"), ["ab/1", "abc/123", "x\n"], ["a/1", "ab/", "x", "ab/1x"]),
        (
            Grammar(choice=Choice(texts=["yes", "no", 'a "b"\n\\', "да", "yesterday"])),
            ["yes", "no", 'a "b"\n\\', "да", "yesterday"],
            ["ye", "maybe", "", "yes "],
        ),
        (lark('start: "a" b+\nb: "b" | "(" start ")"'), ["ab", "abb(ab)"], ["a", "b", "ab(a)"]),
    ],
    ids=["schema", "object", "regex", "choice", "lark"],
)
async def test_grammars(model: Model, grammar: Grammar, taken: list[str], refused: list[str]) -> None:
    lowered = await lower_grammar(grammar, "field")
    assert [text for text in taken if not model.takes(lowered, text)] == []
    assert [text for text in refused if model.takes(lowered, text)] == []


@pytest.mark.parametrize(
    ("grammar", "message"),
    [
        (schema({"type": "objet"}), "field: Invalid type: objet"),
        (schema({"$ref": "#/nope"}), "field: Pointer '/nope' does not exist"),
        (schema({"$ref": "https://example.com/x"}), "field: Resource"),
        (schema({"not": {}}), 'field: Unimplemented keys: ["not"]'),
        (schema(True), "field: must be a JSON schema that is an object"),
        (Grammar(json_schema="{"), "field: is not JSON"),
        (Grammar(json_schema="[" * 50_000), "field: is not JSON"),
        (Grammar(regex="["), "regex"),
        (Grammar(regex=r"(a)\1"), "regex"),
        (lark("start: nope"), "nope"),
        (lark('{"grammars": []}'), "field: must be the text of a Lark grammar"),
        (lark(""), "field: "),
        (Grammar(choice=Choice(texts=[])), "field: at least one text"),
        (Grammar(choice=Choice(texts=["a", ""])), "field: at least one text"),
        (Grammar(choice=Choice(texts=["a"] * 1025)), "field: at most 1024 texts, got 1025"),
        (Grammar(), "field: one of json_schema, regex, lark, choice must be set"),
        (Grammar(regex="a" * MAX_GRAMMAR_BYTES), f"field: at most {MAX_GRAMMAR_BYTES} bytes"),
    ],
)
async def test_what_is_refused(grammar: Grammar, message: str) -> None:
    with pytest.raises(BatonError, match=re.escape(message)) as caught:
        await lower_grammar(grammar, "field")
    assert caught.value.field == "field"
    assert "\n" not in caught.value.message


async def test_white_space_is_the_clients_to_choose(model: Model) -> None:
    style = {"whitespace_flexible": True, "item_separator": ",", "key_separator": ":"}
    free = await lower_grammar(schema({"type": "object", "x-guidance": style}), "field")
    assert model.takes(free, '{ "a" :\n1 }')


def test_an_answer_after_thinking(model: Model) -> None:
    answer = f"start: {json_rule({'type': 'object'})}"
    assert after_thinking(answer, may_think=False, is_thinking=False) == answer
    before = after_thinking(answer, may_think=True, is_thinking=False)
    for text in ('{"a": 1}', "<think>1 < 2 {\n</think>\n\n{}", "<think></think>{}"):
        assert model.takes(before, text), text
    for text in ("1 < 2 </think>{}", "<think>{}", "<think></think>1", "hm {}"):
        assert not model.takes(before, text), text
    inside = after_thinking(answer, may_think=True, is_thinking=True)
    assert model.takes(inside, "1 < 2\n</think>\n\n{}")
    assert not model.takes(inside, "{}")


TOOLS = [
    CallableTool("get_weather", {"type": "object", "properties": {"city": {"type": "string"}}}),
    CallableTool("now", {"type": "object", "additionalProperties": False}),
]
PARIS = '{"name": "get_weather", "arguments": {"city": "Paris"}}'
NOW = '{"name": "now", "arguments": {}}'
WRONG = '{"name": "now", "arguments": {"x": 1}}'
FORMS = {
    ToolFormat.HERMES: (lambda calls: "\n".join(map("<tool_call>\n{}\n</tool_call>".format, calls)), "text "),
    ToolFormat.MISTRAL: (lambda calls: f"[TOOL_CALLS][{', '.join(calls)}]", "text "),
    ToolFormat.LLAMA3: (lambda calls: calls[0].replace("arguments", "parameters"), ""),
}


@pytest.mark.parametrize("marks_are_control_tokens", [False, True])
@pytest.mark.parametrize("format", ToolFormat)
def test_calls_are_what_the_parser_reads(
    model: Model, marked_model: Model, format: ToolFormat, marks_are_control_tokens: bool
) -> None:
    one = marked_model if marks_are_control_tokens else model
    spell, before = FORMS[format]
    names = frozenset(tool.name for tool in TOOLS)
    demanded = {demand: calls_lark(format, TOOLS, demand, one.tokenizer) for demand in Demand}
    for demand, grammar in demanded.items():
        assert one.takes(grammar, spell([PARIS])), demand
        assert not one.takes(grammar, spell([WRONG])), demand
        assert one.takes(grammar, "Just text.") == (demand is Demand.OPTIONAL)
        several = spell([PARIS, NOW]) if format is not ToolFormat.LLAMA3 else None
        if several is not None:
            assert one.takes(grammar, several) == (demand is not Demand.ONE)
    optional = demanded[Demand.OPTIONAL]
    assert one.takes(optional, before + spell([PARIS]))
    assert not one.takes(optional, before + spell([WRONG])), "a call holds to its schema"
    assert one.takes(calls_lark(format, TOOLS[:1], Demand.ONE, one.tokenizer), spell([PARIS]))
    assert not one.takes(calls_lark(format, TOOLS[:1], Demand.ONE, one.tokenizer), spell([NOW]))
    parser = make_parser(format, names)
    text, calls = parser.push(spell([PARIS]))
    rest, more = parser.flush()
    assert (text + rest, calls + more) == ("", [ToolCall("get_weather", '{"city": "Paris"}')])


def test_an_answer_is_a_call_or_json(model: Model) -> None:
    answer = json_rule({"type": "array"})
    grammar = calls_lark(ToolFormat.HERMES, TOOLS, Demand.OPTIONAL, model.tokenizer, answer)
    assert model.takes(grammar, "[1]")
    assert model.takes(grammar, f"<tool_call>\n{NOW}\n</tool_call>")
    assert not model.takes(grammar, "text")
