"""The body of /v1/responses."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, JsonValue

from services.gateway.http.constraint_schema import TextSettings
from services.gateway.http.schema import SamplingBody, Strict


class InputPart(Strict):
    """A part of an input message; what an earlier answer adds to its text has no effect."""

    type: str
    text: str | None = None
    annotations: JsonValue = None
    logprobs: JsonValue = None


class InputMessage(Strict):
    """A turn of the conversation, or a message of an earlier answer."""

    type: Literal["message"] = "message"
    role: Literal["user", "assistant", "system", "developer"]
    content: str | list[InputPart]
    # In what is sent back of an earlier answer; of no effect.
    id: str | None = None
    status: str | None = None
    phase: str | None = None


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
        "tools": (None, []),
        "tool_choice": (None, "none", "auto"),
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
        "tools": "tools are supported by /v1/chat/completions only",
        "truncation": 'only "disabled" is supported: shorten the conversation yourself',
        "prompt": "prompt templates are not stored; send input and instructions",
    }
    elsewhere: ClassVar[dict[str, str]] = {
        "messages": "this goes to /v1/chat/completions; a response has input",
        "max_tokens": "this is max_output_tokens here",
    }

    input: str | list[InputMessage]
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
    tools: JsonValue = None
    tool_choice: JsonValue = None
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
