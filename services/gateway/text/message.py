"""The parts of an assistant's message: reasoning, text and calls of tools."""

from __future__ import annotations

from dataclasses import dataclass, field

from services.gateway.text.reasoning import ReasoningSplitter
from services.gateway.text.tool_calls import ToolCall, ToolCallParser


@dataclass(slots=True)
class MessagePart:
    """What a piece of an answer adds to the message."""

    reasoning: str = ""
    text: str = ""
    tool_calls: list[ToolCall] = field(default_factory=list)


class MessageParser:
    """One answer, from its text in pieces to the parts of a message.

    Args:
        reasoning: None: the model does not mark it.
        tools: None: no tool was offered.
    """

    def __init__(self, reasoning: ReasoningSplitter | None, tools: ToolCallParser | None) -> None:
        self._reasoning = reasoning
        self._tools = tools

    @property
    def is_plain(self) -> bool:
        """Whether all that is pushed is text, at once."""
        return self._reasoning is None and self._tools is None

    def push(self, text: str) -> MessagePart:
        """Return what is sure by now."""
        reasoning = ""
        if self._reasoning is not None:
            reasoning, text = self._reasoning.push(text)
        calls: list[ToolCall] = []
        if self._tools is not None and text:
            text, calls = self._tools.push(text)
        return MessagePart(reasoning, text, calls)

    def flush(self) -> MessagePart:
        """Return what was held back, at the end of the answer."""
        part = MessagePart()
        if self._reasoning is not None:
            part.reasoning, part.text = self._reasoning.flush()
        if self._tools is not None:
            text, calls = self._tools.push(part.text)
            rest, last_calls = self._tools.flush()
            part.text, part.tool_calls = text + rest, calls + last_calls
        return part
