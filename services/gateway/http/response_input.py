"""From the items of a response's input to the turns of a conversation.

An earlier answer comes back as several items: reasoning, a message, calls of tools. To a
model's template they are one turn of the assistant, so what follows each other is put together.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from services.gateway.http.responses_schema import (
    FunctionCall,
    FunctionCallOutput,
    InputMessage,
    InputPart,
    ReasoningItem,
    ResponsesBody,
)
from services.gateway.http.values import Json
from services.gateway.sampling import bad_field
from services.gateway.text.chat_template import Message

_TEXT_PARTS = ("input_text", "output_text", "text")


def conversation(body: ResponsesBody) -> list[Message]:
    """Return the turns.

    Raises:
        BatonError: INVALID_ARGUMENT: there are none, a part is not text, arguments are no JSON, or an
            output belongs to no call.
    """
    items = [InputMessage(role="user", content=body.input)] if isinstance(body.input, str) else body.input
    if not items:
        raise bad_field("input", "at least one message is needed")
    turns = _Turns()
    if body.instructions:
        turns.add("system", body.instructions)
    for i, item in enumerate(items):
        field = f"input[{i}]"
        match item:
            case InputMessage():
                role = "system" if item.role == "developer" else item.role
                turns.add(role, _text(item.content, f"{field}.content"))
            case ReasoningItem():
                turns.reason("\n".join(part.text for part in item.content or ()))
            case FunctionCall():
                turns.call(item, f"{field}.arguments")
            case FunctionCallOutput():
                turns.answer(item, _text(item.output, f"{field}.output"), f"{field}.call_id")
    return turns.messages


class _Turns:
    """Grows item by item."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self._names: dict[str, str] = {}
        # The assistant's turn that further items may belong to.
        self._open: dict[str, Json] | None = None
        self._calls: list[Json] = []

    def add(self, role: str, text: str) -> None:
        if role == "assistant" and self._open is not None and not self._open["content"] and not self._calls:
            self._open["content"] = text
            return
        turn: dict[str, Json] = {"role": role, "content": text}
        self.messages.append(turn)
        self._open, self._calls = (turn if role == "assistant" else None), []

    def reason(self, text: str) -> None:
        self.add("assistant", "")
        if text and self._open is not None:
            self._open["reasoning_content"] = text

    def call(self, item: FunctionCall, field: str) -> None:
        if not _is_json(item.arguments):
            raise bad_field(field, "must be the text of a JSON object")
        if self._open is None:
            self.add("assistant", "")
        assert self._open is not None
        self._names[item.call_id] = item.name
        self._calls.append(
            {
                "id": item.call_id,
                "type": "function",
                "function": {"name": item.name, "arguments": item.arguments},
            }
        )
        self._open["tool_calls"] = self._calls

    def answer(self, item: FunctionCallOutput, text: str, field: str) -> None:
        name = self._names.get(item.call_id)
        if name is None:
            raise bad_field(field, f"no function_call before it has the call_id {item.call_id!r}")
        self.messages.append({"role": "tool", "tool_call_id": item.call_id, "name": name, "content": text})
        self._open, self._calls = None, []


def _is_json(text: str) -> bool:
    try:
        json.loads(text or "{}")
    except (ValueError, RecursionError):
        return False
    return True


def _text(content: str | Sequence[InputPart], field: str) -> str:
    if isinstance(content, str):
        return content
    texts: list[str] = []
    for i, part in enumerate(content):
        if part.type not in _TEXT_PARTS or part.text is None:
            raise bad_field(f"{field}[{i}]", 'only parts of type "input_text" or "output_text" are taken')
        texts.append(part.text)
    return "\n".join(texts)
