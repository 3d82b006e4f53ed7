"""The body of /v1/responses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import AliasChoices, Discriminator, Field, JsonValue, Tag

from services.gateway.http.constraint_schema import FlatAllowedToolChoice, FlatToolChoice, TextSettings
from services.gateway.http.schema import SamplingBody, Strict


class InputPart(Strict):
    """A part of an input message; what an earlier answer adds to its text has no effect."""

    type: str
    text: str | None = None
    annotations: JsonValue = None
    logprobs: JsonValue = None
    parsed: JsonValue = None


class InputMessage(Strict):
    """A turn of the conversation, or a message of an earlier answer."""

    type: Literal["message"] = "message"
    role: Literal["user", "assistant", "system", "developer"]
    content: str | list[InputPart]
    # In what is sent back of an earlier answer; of no effect.
    id: str | None = None
    status: str | None = None
    phase: str | None = None


class FunctionCall(Strict):
    """A call of a tool in an earlier answer; `arguments` is the text of a JSON object."""

    type: Literal["function_call"]
    call_id: str
    name: str
    arguments: str
    # Of no effect.
    id: str | None = None
    status: str | None = None
    namespace: str | None = None
    caller: JsonValue = None
    parsed_arguments: JsonValue = None
    # The SDK's objects call it async_ where they are dumped by their own names.
    is_async: bool | None = Field(default=None, validation_alias=AliasChoices("async", "async_"))


class FunctionCallOutput(Strict):
    """What a tool gave."""

    type: Literal["function_call_output"]
    call_id: str
    output: str | list[InputPart]
    # Of no effect.
    id: str | None = None
    status: str | None = None
    name: str | None = None
    namespace: str | None = None
    caller: JsonValue = None


class ReasoningText(Strict):
    """A part of the reasoning in an earlier answer."""

    type: str
    text: str


class ReasoningItem(Strict):
    """The reasoning of an earlier answer; models whose template shows it get it."""

    type: Literal["reasoning"]
    content: list[ReasoningText] | None = None
    # Of no effect.
    id: str | None = None
    summary: JsonValue = None
    status: str | None = None
    encrypted_content: str | None = None


_ITEMS = {
    "message": "a-message",
    "function_call": "a-call",
    "function_call_output": "an-output",
    "reasoning": "a-reasoning",
}


def _item_kind(item: object) -> str | None:
    kind = item.get("type", "message") if isinstance(item, Mapping) else getattr(item, "type", None)
    return _ITEMS.get(kind) if isinstance(kind, str) else None


InputItem = Annotated[
    Annotated[InputMessage, Tag("a-message")]
    | Annotated[FunctionCall, Tag("a-call")]
    | Annotated[FunctionCallOutput, Tag("an-output")]
    | Annotated[ReasoningItem, Tag("a-reasoning")],
    Discriminator(
        _item_kind,
        custom_error_type="item_type",
        custom_error_message="Items must be of type " + ", ".join(_ITEMS),
    ),
]


class FunctionTool(Strict):
    """A function that the model may call; `parameters` is a JSON schema, kept to if it is `strict`."""

    type: Literal["function"]
    name: str = Field(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")
    description: str | None = None
    parameters: dict[str, JsonValue] | None = None
    strict: bool | None = None


class ResponsesStreamOptions(Strict):
    """What a stream carries besides events."""

    include_obfuscation: bool | None = None


class ResponsesBody(SamplingBody):
    """POST /v1/responses."""

    neutral: ClassVar[dict[str, tuple[JsonValue, ...]]] = {
        "store": (None, False),
        "previous_response_id": (None,),
        "conversation": (None,),
        "background": (None, False),
        "reasoning": (None, {}),
        "truncation": (None, "disabled"),
        "max_tool_calls": (None,),
        "prompt": (None,),
        "moderation": (None,),
        "image": (None,),
        "access_programs": (None,),
        "background_options": (None,),
        "context_management": (None,),
    }
    refusals: ClassVar[dict[str, str]] = {
        "store": "responses are not stored; leave the field out or set it to false",
        "previous_response_id": "responses are not stored; send the whole conversation as input",
        "conversation": "conversations are not stored; send the whole conversation as input",
        "background": "a response is not kept beyond its connection; stream it instead",
        "truncation": 'only "disabled" is supported: shorten the conversation yourself',
        "prompt": "prompt templates are not stored; send input and instructions",
    }
    elsewhere: ClassVar[dict[str, str]] = {
        "messages": "this goes to /v1/chat/completions; a response has input",
        "max_tokens": "this is max_output_tokens here",
    }

    input: str | list[InputItem]
    instructions: str | None = None
    max_output_tokens: int | None = Field(default=None, ge=1, lt=2**32)
    top_logprobs: int | None = Field(default=None, ge=0, le=20)
    include: list[Literal["message.output_text.logprobs", "reasoning.encrypted_content"]] | None = None
    parallel_tool_calls: bool | None = None
    stream_options: ResponsesStreamOptions | None = None
    store: JsonValue = None
    previous_response_id: JsonValue = None
    conversation: JsonValue = None
    background: JsonValue = None
    tools: list[FunctionTool] | None = None
    tool_choice: Literal["none", "auto", "required"] | FlatToolChoice | FlatAllowedToolChoice | None = None
    text: TextSettings | None = None
    reasoning: JsonValue = None
    truncation: JsonValue = None
    max_tool_calls: JsonValue = None
    prompt: JsonValue = None
    moderation: JsonValue = None
    image: JsonValue = None
    access_programs: JsonValue = None
    background_options: JsonValue = None
    context_management: JsonValue = None
