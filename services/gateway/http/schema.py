"""What clients may send: strict types, and no field that would be silently ignored.

Known fields of OpenAI's API that ask for nothing here (user, metadata, store, ...) are
taken; those that ask for what is not supported are refused unless they hold the value
that means "no"; unknown ones are refused, with the nearest known name.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from services.gateway.http.constraint_schema import (
    AllowedToolChoice,
    NamedToolChoice,
    ResponseFormat,
    StructuredOutputs,
)

Uint32 = Annotated[int, Field(ge=0, lt=2**32)]
Uint64 = Annotated[int, Field(ge=0, lt=2**64)]


# Names of other servers' older releases.
_OLD_GUIDANCE = {
    f"guided_{kind}": f"this is structured_outputs.{kind} here"
    for kind in ("json", "regex", "choice", "grammar")
}


class Strict(BaseModel):
    """A body, or a part of one.

    Attributes:
        neutral: fields that are not supported, and the values that ask for nothing.
        refusals: why, for some of them.
        elsewhere: fields of other routes, and where to send them.
    """

    model_config = ConfigDict(extra="forbid", strict=True)
    neutral: ClassVar[dict[str, tuple[JsonValue, ...]]] = {}
    refusals: ClassVar[dict[str, str]] = {}
    elsewhere: ClassVar[dict[str, str]] = {}


class StreamOptions(Strict):
    """What a stream carries besides text."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None
    include_obfuscation: bool | None = None


class SamplingBody(Strict):
    """Fields that all ways to generate share."""

    model: str = ""
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = Field(default=None, ge=-1, lt=2**32)
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**64)
    stop: str | list[str] | None = None
    stop_token_ids: list[Uint32] | None = None
    ignore_eos: bool | None = None
    min_tokens: Uint32 | None = None
    stream: bool | None = None
    priority: int | None = Field(default=None, ge=-100, le=100)
    cache_salt: str | None = None
    # Of no effect here.
    user: str | None = None
    metadata: JsonValue = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    prompt_cache_options: JsonValue = None


class GenerationBody(SamplingBody):
    """Fields that chat and plain completions share."""

    max_tokens: Uint32 | None = None
    n: int | None = Field(default=None, ge=1, le=16)
    stream_options: StreamOptions | None = None
    store: bool | None = None
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None


class TextPart(Strict):
    """A part of a turn's content."""

    type: str
    text: str | None = None


class ChatTurn(Strict):
    """One turn; what is set goes to the model's template."""

    role: str = Field(min_length=1)
    content: str | list[TextPart] | None = None
    name: str | None = None
    tool_calls: list[dict[str, JsonValue]] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None
    # In what OpenAI's clients send back of an earlier answer; of no effect.
    refusal: JsonValue = None
    annotations: JsonValue = None
    audio: JsonValue = None
    function_call: JsonValue = None
    parsed: JsonValue = None


class FunctionSchema(Strict):
    """A function that the model may call; `parameters` is a JSON schema."""

    name: str = Field(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")
    description: str | None = None
    parameters: dict[str, JsonValue] | None = None
    strict: bool | None = None


class Tool(Strict):
    """A tool that the model may call."""

    type: Literal["function"]
    function: FunctionSchema


class ChatBody(GenerationBody):
    """POST /v1/chat/completions."""

    neutral: ClassVar[dict[str, tuple[JsonValue, ...]]] = {
        "functions": (None, []),
        "function_call": (None, "none", "auto"),
        "modalities": (None, ["text"]),
        "audio": (None,),
        "prediction": (None,),
        "reasoning_effort": (None, "none"),
        "verbosity": (None, "medium"),
        "web_search_options": (None,),
        "moderation": (None,),
    }
    elsewhere: ClassVar[dict[str, str]] = {
        "prompt": "this goes to /v1/completions; a chat has messages",
        "input": "this goes to /v1/responses; a chat has messages",
        **_OLD_GUIDANCE,
    }

    messages: list[ChatTurn]
    max_completion_tokens: Uint32 | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=20)
    parallel_tool_calls: bool | None = None
    tools: list[Tool] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedToolChoice | AllowedToolChoice | None = None
    chat_template_kwargs: dict[str, JsonValue] | None = None
    functions: JsonValue = None
    function_call: JsonValue = None
    modalities: JsonValue = None
    audio: JsonValue = None
    prediction: JsonValue = None
    reasoning_effort: JsonValue = None
    verbosity: JsonValue = None
    web_search_options: JsonValue = None
    moderation: JsonValue = None


class CompletionBody(GenerationBody):
    """POST /v1/completions."""

    neutral: ClassVar[dict[str, tuple[JsonValue, ...]]] = {
        "suffix": (None, ""),
    }
    refusals: ClassVar[dict[str, str]] = {
        "suffix": "filling in before a suffix is not supported; leave the field out",
    }
    elsewhere: ClassVar[dict[str, str]] = {
        "messages": "this goes to /v1/chat/completions; a plain completion has a prompt",
        "input": "this goes to /v1/responses; a plain completion has a prompt",
        **_OLD_GUIDANCE,
    }

    prompt: str | list[str] | list[Uint32] | list[list[Uint32]]
    logprobs: int | None = Field(default=None, ge=0, le=20)
    best_of: int | None = Field(default=None, ge=1, le=16)
    echo: bool | None = None
    prompt_logprobs: int | None = Field(default=None, ge=0, le=20)
    suffix: JsonValue = None
