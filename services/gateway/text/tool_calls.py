"""Finds calls of tools in an answer, in the formats that models are trained to write.

hermes    <tool_call>{"name": ..., "arguments": {...}}</tool_call>, any number, text around (Hermes, Qwen)
mistral   [TOOL_CALLS][{"name": ..., "arguments": {...}}] or [TOOL_CALLS]name[ARGS]{...}, text before
llama3    the whole answer is {"name": ..., "parameters": {...}}, several after semicolons, perhaps
          after <|python_tag|>

What looks like a call but is none (broken JSON, a tool that was not offered) stays text.
"""

from __future__ import annotations

import enum
import json
import re
from collections.abc import Callable, Set
from dataclasses import dataclass
from typing import NoReturn, Protocol

from services.gateway.text.stop import num_held

_OPEN, _CLOSE = "<tool_call>", "</tool_call>"
_MISTRAL = "[TOOL_CALLS]"
_PYTHON_TAG = "<|python_tag|>"
_MISTRAL_CALL = re.compile(r"\s*([\w.-]+)\s*(?:\[CALL_ID\]\w+)?(?:\[ARGS\])?\s*(?=\{)")
_BETWEEN = re.compile(r"[\s;]*")


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


_DECODER = json.JSONDecoder(parse_constant=_refuse_constant)


class ToolFormat(enum.Enum):
    """How a model writes calls."""

    HERMES = "hermes"
    MISTRAL = "mistral"
    LLAMA3 = "llama3"


# Marks that may be control tokens, whose text must then be shown to the parser.
MARKS = {
    ToolFormat.HERMES: (_OPEN, _CLOSE),
    ToolFormat.MISTRAL: (_MISTRAL, "[ARGS]", "[CALL_ID]"),
    ToolFormat.LLAMA3: (_PYTHON_TAG,),
}


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call; `arguments` is the text of a JSON object."""

    name: str
    arguments: str


Found = tuple[str, list[ToolCall]]


class ToolCallParser(Protocol):
    """Text in pieces to text and calls."""

    def push(self, text: str) -> Found:
        """Return the text that is surely no call, and the calls that are complete."""

    def flush(self) -> Found:
        """Return what is left, at the end of the answer."""


def detect_format(template: str) -> ToolFormat | None:
    """Return the format that a chat template shows to its model; None: none that is known."""
    if "<function=" in template:  # calls in XML
        return None
    if _OPEN in template:
        return ToolFormat.HERMES
    if _MISTRAL in template:
        return ToolFormat.MISTRAL
    if _PYTHON_TAG in template or '"parameters"' in template:
        return ToolFormat.LLAMA3
    return None


def make_parser(format: ToolFormat, names: Set[str]) -> ToolCallParser:
    """Return a parser for one answer; `names` are those of the tools offered."""
    if format is ToolFormat.HERMES:
        return _HermesParser(names)
    if format is ToolFormat.MISTRAL:
        return _TailParser(_find_mistral, lambda tail: _parse_mistral(tail, names))
    return _TailParser(_find_llama3, lambda tail: _parse_llama3(tail, names))


class _HermesParser:
    """Calls between tags; each is given when its tag closes."""

    def __init__(self, names: Set[str]) -> None:
        self._names = names
        self._held = ""
        self._search_from = 0
        self._is_inside = False
        self._num_calls = 0

    def push(self, text: str) -> Found:
        self._held += text
        texts: list[str] = []
        calls: list[ToolCall] = []
        while self._is_inside or self._enter(texts):
            if not self._leave(texts, calls):
                break
        self._num_calls += len(calls)
        return "".join(texts), calls

    def flush(self) -> Found:
        held, self._held = self._held, ""
        if self._is_inside:  # some models forget to close the last tag
            call = _as_call(_parse_json(held.removeprefix(_OPEN)), self._names)
            return ("", [call]) if call else (held, [])
        return ("" if self._num_calls and not held.strip() else held), []

    def _enter(self, texts: list[str]) -> bool:
        """Give the text before the next open tag; blanks before a tag are not given."""
        at = self._held.find(_OPEN)
        end = len(self._held) - num_held(self._held, (_OPEN,)) if at < 0 else at
        shown = self._held[:end].rstrip()
        texts.append(shown)
        self._held = self._held[len(shown) if at < 0 else at :]
        self._is_inside = at >= 0
        self._search_from = 0
        return self._is_inside

    def _leave(self, texts: list[str], calls: list[ToolCall]) -> bool:
        """Give the call, or what is none as text, if its tag is closed."""
        while (at := self._held.find(_CLOSE, self._search_from)) >= 0:
            try:
                value = _DECODER.decode(self._held[len(_OPEN) : at])
            except json.JSONDecodeError as error:
                if error.msg.startswith("Unterminated string"):  # the tag is inside of an argument
                    self._search_from = at + len(_CLOSE)
                    continue
                value = None
            except (ValueError, RecursionError):
                value = None
            call = _as_call(value, self._names)
            end = at + len(_CLOSE)
            if call:
                calls.append(call)
            else:
                texts.append(self._held[:end])
            self._held = self._held[end:]
            self._is_inside = False
            return True
        return False


class _TailParser:
    """Calls that fill the rest of the answer from some place on.

    Args:
        find: given the text and whether some was shown before, tells whether calls may begin in it,
            and how many characters are surely text.
        parse: from the rest to calls; empty: it is text after all.
    """

    def __init__(
        self, find: Callable[[str, bool], tuple[bool, int]], parse: Callable[[str], list[ToolCall]]
    ) -> None:
        self._find = find
        self._parse = parse
        self._held = ""
        self._is_inside = False
        self._is_begun = False

    def push(self, text: str) -> Found:
        self._held += text
        if self._is_inside:
            return "", []
        self._is_inside, safe = self._find(self._held, self._is_begun)
        shown, self._held = self._held[:safe], self._held[safe:]
        self._is_begun = self._is_begun or bool(shown)
        return shown, []

    def flush(self) -> Found:
        held, self._held = self._held, ""
        calls = self._parse(held) if self._is_inside else []
        return ("", calls) if calls else (held, [])


def _find_mistral(text: str, is_begun: bool) -> tuple[bool, int]:
    at = text.find(_MISTRAL)
    return (True, at) if at >= 0 else (False, len(text) - num_held(text, (_MISTRAL,)))


def _find_llama3(text: str, is_begun: bool) -> tuple[bool, int]:
    """Calls begin with the answer or not at all."""
    begun = text.lstrip()
    if is_begun:
        return False, len(text)
    if begun.startswith(("{", _PYTHON_TAG)):
        return True, 0
    return False, 0 if _PYTHON_TAG.startswith(begun) else len(text)


def _parse_mistral(tail: str, names: Set[str]) -> list[ToolCall]:
    first = tail[len(_MISTRAL) :].lstrip()
    if first.startswith("["):
        values = _parse_json(first)
        return _all_calls(values if isinstance(values, list) else [], names)
    found: list[object] = []
    for part in tail.split(_MISTRAL)[1:]:
        match = _MISTRAL_CALL.match(part)
        arguments = _parse_json(part[match.end() :]) if match else None
        found.append({"name": match[1], "arguments": arguments} if match else None)
    return _all_calls(found, names)


def _parse_llama3(tail: str, names: Set[str]) -> list[ToolCall]:
    found: list[object] = []
    text = tail.lstrip().removeprefix(_PYTHON_TAG)
    at = 0
    while (at := _end_of_blanks(text, at)) < len(text):
        try:
            value, at = _DECODER.raw_decode(text, at)
        except (ValueError, RecursionError):
            return []
        found.append(value)
    return _all_calls(found, names)


def _end_of_blanks(text: str, at: int) -> int:
    match = _BETWEEN.match(text, at)
    assert match is not None
    return match.end()


def _all_calls(values: list[object], names: Set[str]) -> list[ToolCall]:
    """Return the calls if every value is one, else none."""
    calls = [call for value in values if (call := _as_call(value, names))]
    return calls if len(calls) == len(values) else []


def _as_call(value: object, names: Set[str]) -> ToolCall | None:
    if not isinstance(value, dict):
        return None
    name = value.get("name")
    if not isinstance(name, str) or name not in names:
        return None
    arguments = value.get("arguments", value.get("parameters", {}))
    if isinstance(arguments, str):
        arguments = _parse_json(arguments)
    if not isinstance(arguments, dict):
        return None
    text = json.dumps(arguments, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:  # half of a surrogate pair, which only an escape can show
        text = json.dumps(arguments)
    return ToolCall(name, text)


def _parse_json(text: str) -> object:
    try:
        return _DECODER.decode(text)
    except (ValueError, RecursionError):
        return None
