"""Conversations and tools over gRPC: from the request's messages, and from an answer's text to its parts."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from pydantic import JsonValue, ValidationError

from baton.v1.inference_pb2 import ChatMessage, Delta, Finished, GenerateRequest, ToolCall, ToolChoice
from services.common.ids import new_id
from services.gateway.http.schema import FunctionSchema
from services.gateway.http.schema import Tool as HttpTool
from services.gateway.http.tools import Choice, ToolUse, use_tools
from services.gateway.sampling import bad_field
from services.gateway.session.session import Event
from services.gateway.text.chat_template import ChatTemplate, Json, Message
from services.gateway.text.message import MessageParser, MessagePart

_MODES = {
    ToolChoice.MODE_UNSPECIFIED: "auto",
    ToolChoice.MODE_AUTO: "auto",
    ToolChoice.MODE_REQUIRED: "required",
    ToolChoice.MODE_NONE: "none",
}


def turns(messages: Sequence[ChatMessage]) -> list[Message]:
    """Return a conversation as templates take it."""
    return [_turn(message) for message in messages]


def request_tools(request: GenerateRequest, template: ChatTemplate) -> ToolUse | None:
    """Return the use of tools; None: none is called.

    Raises:
        BatonError: INVALID_ARGUMENT: what is asked for cannot be had.
    """
    if not request.tools and not request.HasField("tool_choice"):
        return None
    if request.WhichOneof("input") != "messages":
        raise bad_field("tools", "only a conversation (messages) may have them")
    asked = request.tool_choice
    mode = _MODES.get(asked.mode)
    if mode is None:
        raise bad_field("tool_choice.mode", f"must be one of the modes, got {asked.mode}")
    names = [(name, f"tool_choice.names[{i}]") for i, name in enumerate(asked.names)] or None
    tools = [
        HttpTool(
            type="function",
            function=_function(
                f"tools[{i}]", tool.name, tool.description, tool.parameters, strict=tool.strict
            ),
        )
        for i, tool in enumerate(request.tools)
    ]
    choice = Choice(mode, names, is_one=asked.single)
    return use_tools(tools, "tools[{}]", choice, None, template)


def template_variables(request: GenerateRequest) -> Mapping[str, Json]:
    """Return the further variables of the template.

    Raises:
        BatonError: INVALID_ARGUMENT: not a JSON object, or there is no conversation.
    """
    if request.template_variables and request.WhichOneof("input") != "messages":
        raise bad_field("template_variables", "only a conversation (messages) has a template")
    return _object("template_variables", request.template_variables) or {}


class MessageEvents:
    """The events of one session, with reasoning and calls of tools taken out of the text.

    Args:
        max_calls: further calls are dropped; None: no limit.
    """

    def __init__(self, parser: MessageParser, max_calls: int | None = None) -> None:
        self._parser = parser
        self._max_calls = max_calls
        self._num_calls = 0

    def take(self, event: Event) -> list[Event]:
        """Return what a client gets for an event."""
        if isinstance(event, Delta):
            self._show(event, self._parser.push(event.text))
            return [event]
        rest = Delta()
        if isinstance(event, Finished):
            self._show(rest, self._parser.flush())
        return [rest, event] if rest.ByteSize() else [event]

    def _show(self, delta: Delta, part: MessagePart) -> None:
        delta.text, delta.reasoning = part.text, part.reasoning
        calls = part.tool_calls
        if self._max_calls is not None:
            calls = calls[: self._max_calls - self._num_calls]
        self._num_calls += len(calls)
        for call in calls:
            delta.tool_calls.append(ToolCall(id=f"call_{new_id()}", name=call.name, arguments=call.arguments))


def _turn(message: ChatMessage) -> Message:
    turn: dict[str, Json] = {"role": message.role, "content": message.content}
    for name, key in (
        ("tool_call_id", "tool_call_id"),
        ("name", "name"),
        ("reasoning", "reasoning_content"),
    ):
        if value := getattr(message, name):
            turn[key] = value
    if message.tool_calls:
        turn["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments},
            }
            for call in message.tool_calls
        ]
    return turn


def _function(field: str, name: str, description: str, parameters: str, *, strict: bool) -> FunctionSchema:
    schema = _object(f"{field}.parameters", parameters)
    try:
        return FunctionSchema(
            name=name, description=description or None, parameters=schema, strict=strict or None
        )
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        path = ".".join(str(part) for part in first["loc"])
        raise bad_field(f"{field}.{path}", first["msg"]) from None


def _object(field: str, text: str) -> dict[str, JsonValue] | None:
    """Return a JSON object; None: the text is empty. BatonError: INVALID_ARGUMENT: it is none."""
    if not text:
        return None
    try:
        value: object = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise bad_field(field, "must be the text of a JSON object")
    return value
