"""Grammars of calls of tools, in the formats that text/tool_calls.py reads.

A tool that is not `strict` may still be called with any object when the model chooses
to; a call that the client demands keeps to the tool's schema in either case.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from services.gateway.constraints.grammar import json_rule, literal
from services.gateway.text.tokenizer import Tokenizer
from services.gateway.text.tool_calls import ToolFormat


class Demand(enum.Enum):
    """Whether an answer has calls."""

    OPTIONAL = "optional"
    ONE = "one"
    SOME = "some"


@dataclass(frozen=True, slots=True)
class CallableTool:
    """A tool that may be called; `parameters` is the JSON schema of its arguments."""

    name: str
    parameters: Mapping[str, object]


def calls_lark(
    format: ToolFormat,
    tools: Sequence[CallableTool],
    demand: Demand,
    tokenizer: Tokenizer,
    answer: str | None = None,
) -> str:
    """Return the grammar of an answer with calls.

    Args:
        tools: at least one.
        demand: OPTIONAL: text, or calls (after some text, where the format has it so).
        answer: Lark rule of an answer without calls; None: any text.
    """
    key = "parameters" if format is ToolFormat.LLAMA3 else "arguments"
    rules = [
        f"call: {' | '.join(f'tool{i}' for i in range(len(tools)))}",
        *(_tool_rule(i, tool, key) for i, tool in enumerate(tools)),
    ]
    calls = _CALLS[format](demand is not Demand.ONE, tokenizer)
    if demand is not Demand.OPTIONAL:
        return "\n".join([f"start: {calls.demanded}", *calls.rules, *rules])
    if answer is not None:
        return "\n".join([f"start: {calls.demanded} | answer", f"answer: {answer}", *calls.rules, *rules])
    return "\n".join([f"start: {calls.optional}", *calls.rules, *calls.text_rules, *rules])


@dataclass(frozen=True, slots=True)
class _Calls:
    """Rules of one format, over `call`.

    Attributes:
        demanded: an answer that is calls.
        optional: text, or calls.
        text_rules: what `optional` needs besides.
    """

    demanded: str
    optional: str
    rules: tuple[str, ...]
    text_rules: tuple[str, ...]


def _hermes(several: bool, tokenizer: Tokenizer) -> _Calls:
    opening, closing = _mark("<tool_call>", tokenizer), _mark("</tool_call>", tokenizer)
    more = r' ("\n" tagged)*' if several else ""
    return _Calls(
        demanded=f"tagged{more}",
        optional="before* rest",
        rules=(rf'tagged: {opening} "\n" call "\n" {closing}',),
        text_rules=(
            *_text_until("<tool_call>", tokenizer),
            rf'before: until "\n" call "\n" {closing}',
        ),
    )


def _mistral(several: bool, tokenizer: Tokenizer) -> _Calls:
    more = ' (", " call)*' if several else ""
    return _Calls(
        demanded=f"{_mark('[TOOL_CALLS]', tokenizer)} listed",
        optional="(until listed) | rest",
        rules=(f'listed: "[" call{more} "]"',),
        text_rules=_text_until("[TOOL_CALLS]", tokenizer),
    )


def _llama3(several: bool, tokenizer: Tokenizer) -> _Calls:
    # The whole answer is the call, so text is what does not begin like one.
    return _Calls(
        demanded="call",
        optional="call | free",
        rules=(),
        text_rules=(r"free: /([^{<\s](.|\n)*)?/",),
    )


_CALLS = {ToolFormat.HERMES: _hermes, ToolFormat.MISTRAL: _mistral, ToolFormat.LLAMA3: _llama3}


def _text_until(mark: str, tokenizer: Tokenizer) -> tuple[str, ...]:
    """Return the rules `until`, text with the mark at its end, and `rest`, text without one to the end."""
    if _is_special(mark, tokenizer):
        return (f"until: TEXT {_mark(mark, tokenizer)}", "rest: TEXT", r"TEXT: /(.|\n)*/")
    without = rf"REST: /(.|\n)*/ & ~(/(.|\n)*/ {literal(mark)} /(.|\n)*/)"
    return (f"until[lazy]: TEXT {literal(mark)}", "rest: REST", r"TEXT: /(.|\n)*/", without)


def _tool_rule(index: int, tool: CallableTool, key: str) -> str:
    head = f'{{"name": {literal(tool.name)}, "{key}": '
    return f'tool{index}: {literal(head)} {json_rule(tool.parameters)} "}}"'


def _mark(mark: str, tokenizer: Tokenizer) -> str:
    """Return what stands for a mark in a rule: a control token has no bytes, so it goes by its id."""
    return f"<[{tokenizer.id_of(mark)}]>" if _is_special(mark, tokenizer) else literal(mark)


def _is_special(mark: str, tokenizer: Tokenizer) -> bool:
    token_id = tokenizer.id_of(mark)
    return token_id is not None and tokenizer.is_special(token_id)
