"""Grammars as clients give them, checked before any compute and lowered to Lark.

json_schema   start: %json {...}          compact: ", " and ": ", since small models loop on free blanks
regex         start: /.../
choice        start: "..." | "..."
lark          as it is

For a model that thinks aloud first, the whole becomes  start: think? @answer.
"""

from __future__ import annotations

import asyncio
import functools
import json
from collections.abc import Mapping

import llguidance

from baton.v1.sampling_pb2 import Grammar
from services.gateway.sampling import bad_field
from services.gateway.text.reasoning import CLOSE, OPEN

MAX_GRAMMAR_BYTES = 1 << 16
"""Of what a client gives. Workers take twice as much, for what is added here."""
MAX_CHOICES = 1024

_JSON_STYLE = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
_THINK = r"think: {open} thought /\n*/" + "\n" + r'thought[suffix="</think>"]: /(.|\n)*/'
# What takes longer to check is checked on a thread (1 KiB takes about 1 ms at most).
_INLINE_BYTES = 2048
_KINDS = ("json_schema", "regex", "lark", "choice")


async def lower_grammar(grammar: Grammar, field: str) -> str:
    """Return a grammar as Lark.

    Args:
        field: of the client's request, for messages.
    Raises:
        BatonError: INVALID_ARGUMENT: not valid, not supported, or too large.
    """
    kind = grammar.WhichOneof("kind")
    size = grammar.ByteSize()
    if size > MAX_GRAMMAR_BYTES:
        raise bad_field(field, f"at most {MAX_GRAMMAR_BYTES} bytes, got {size}")
    match kind:
        case "json_schema":
            lark = f"start: {json_rule(_parse_schema(grammar.json_schema, field))}"
        case "regex":
            lark = _regex_lark(grammar.regex)
        case "choice":
            lark = _choice_lark(list(grammar.choice.texts), field)
        case "lark":
            lark = grammar.lark
        case _:
            raise bad_field(field, f"one of {', '.join(_KINDS)} must be set")
    if kind == "lark" and lark.lstrip().startswith("{"):
        raise bad_field(field, "must be the text of a Lark grammar, with a rule `start`")
    await check_lark(lark, field)
    return lark


async def check_lark(lark: str, field: str) -> None:
    """Check a grammar.

    Raises:
        BatonError: INVALID_ARGUMENT.
    """
    if len(lark) <= _INLINE_BYTES:
        fault = _fault(lark)
    else:
        fault = await asyncio.to_thread(_fault, lark)
    if fault:
        raise bad_field(field, fault)


def json_rule(schema: Mapping[str, object]) -> str:
    """Return the part of a Lark rule that stands for the JSON of a schema."""
    given = schema.get("x-guidance")
    style = {**_JSON_STYLE, **(given if isinstance(given, Mapping) else {})}
    return f"%json {json.dumps({**schema, 'x-guidance': style})}"


def literal(text: str) -> str:
    """Return the part of a Lark rule that stands for a text."""
    return json.dumps(text, ensure_ascii=False)


def after_thinking(lark: str, *, may_think: bool, is_thinking: bool) -> str:
    """Return the grammar of an answer with what its model thinks before it.

    Args:
        may_think: the model may think before its answer, between marks.
        is_thinking: the prompt has opened the mark already.
    """
    if not may_think:
        return lark
    start = "start: think @answer" if is_thinking else "start: think? @answer"
    think = _THINK.format(open="" if is_thinking else literal(OPEN))
    assert CLOSE in think
    parts = [
        {"name": "whole", "lark_grammar": f"{start}\n{think}"},
        {"name": "answer", "lark_grammar": lark},
    ]
    return json.dumps({"grammars": parts})


def _parse_schema(text: str, field: str) -> Mapping[str, object]:
    try:
        schema = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise bad_field(field, f"is not JSON: {error}") from None
    if not isinstance(schema, dict):
        raise bad_field(field, "must be a JSON schema that is an object")
    return schema


def _regex_lark(regex: str) -> str:
    form = json.loads(llguidance.LLMatcher.grammar_from_regex(regex))
    lark: str = form["grammars"][0]["lark_grammar"]
    return lark


def _choice_lark(texts: list[str], field: str) -> str:
    if not texts or not all(texts):
        raise bad_field(field, "at least one text, and none empty, is needed")
    if len(texts) > MAX_CHOICES:
        raise bad_field(field, f"at most {MAX_CHOICES} texts, got {len(texts)}")
    return "start: " + " | ".join(literal(text) for text in texts)


@functools.lru_cache(maxsize=128)
def _fault(lark: str) -> str:
    """Return what is wrong with a grammar in one line, or nothing."""
    limits = llguidance.LLParserLimits(verbose_errors=False)
    message: str = llguidance.LLMatcher.validate_grammar(lark, None, limits=limits)
    if message.startswith("WARNING"):
        return ""
    line = message.split("\n", 1)[0].strip()
    return line.split("failed to compile JSON schema: ")[-1]
