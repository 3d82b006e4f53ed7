"""What clients may send: strict types, and no field that would be silently ignored.

Known fields of OpenAI's API that ask for nothing here (user, metadata, store, ...) are
taken; those that ask for what is not supported are refused unless they hold the value
that means "no"; unknown ones are refused, with the nearest known name.
"""

from __future__ import annotations

import difflib
from typing import Annotated, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from services.common.errors import BatonError, ErrorReason
from services.gateway.sampling import bad_field

Uint32 = Annotated[int, Field(ge=0, lt=2**32)]
Uint64 = Annotated[int, Field(ge=0, lt=2**64)]

# A request for either of these is refused unless it holds one of the values listed.
_Neutral = dict[str, tuple[JsonValue, ...]]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class StreamOptions(_Strict):
    """What a stream carries besides text."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None
    include_obfuscation: bool | None = None


class GenerationBody(_Strict):
    """Fields that chat and plain completions share."""

    neutral: ClassVar[_Neutral] = {}

    model: str = ""
    max_tokens: Uint32 | None = None
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
    n: int | None = Field(default=None, ge=1, le=16)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    priority: int | None = Field(default=None, ge=-100, le=100)
    cache_salt: str | None = None
    # Of no effect here.
    user: str | None = None
    metadata: JsonValue = None
    store: bool | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None


class TextPart(_Strict):
    """A part of a turn's content."""

    type: str
    text: str | None = None


class ChatTurn(_Strict):
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


class ChatBody(GenerationBody):
    """POST /v1/chat/completions."""

    neutral: ClassVar[_Neutral] = {
        "tools": (None, []),
        "tool_choice": (None, "none", "auto"),
        "functions": (None, []),
        "function_call": (None, "none", "auto"),
        "response_format": (None, {"type": "text"}),
        "modalities": (None, ["text"]),
        "audio": (None,),
        "prediction": (None,),
        "reasoning_effort": (None, "none"),
        "verbosity": (None, "medium"),
        "web_search_options": (None,),
    }

    messages: list[ChatTurn]
    max_completion_tokens: Uint32 | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=20)
    parallel_tool_calls: bool | None = None
    tools: JsonValue = None
    tool_choice: JsonValue = None
    functions: JsonValue = None
    function_call: JsonValue = None
    response_format: JsonValue = None
    modalities: JsonValue = None
    audio: JsonValue = None
    prediction: JsonValue = None
    reasoning_effort: JsonValue = None
    verbosity: JsonValue = None
    web_search_options: JsonValue = None


class CompletionBody(GenerationBody):
    """POST /v1/completions."""

    neutral: ClassVar[_Neutral] = {
        "best_of": (None, 1),
        "echo": (None, False),
        "suffix": (None, ""),
    }

    prompt: str | list[str] | list[Uint32] | list[list[Uint32]]
    logprobs: int | None = Field(default=None, ge=0, le=20)
    best_of: JsonValue = None
    echo: JsonValue = None
    suffix: JsonValue = None


Body = TypeVar("Body", bound=GenerationBody)


def parse_body(cls: type[Body], body: bytes) -> Body:
    """Parse and check a body.

    Raises:
        BatonError: INVALID_ARGUMENT; names the field and what was expected.
    """
    try:
        parsed = cls.model_validate_json(body)
    except ValidationError as error:
        raise _explain(cls, error) from None
    for name, allowed in cls.neutral.items():
        value = getattr(parsed, name)
        if value not in allowed:
            raise bad_field(name, "this is not supported; leave the field out")
    return parsed


def _explain(cls: type[GenerationBody], error: ValidationError) -> BatonError:
    # Of the arms of a union, the one that got furthest into the value says most.
    first = max(error.errors(include_url=False, include_context=False), key=lambda item: len(item["loc"]))
    kind, message = first["type"], first["msg"]
    if kind == "json_invalid":
        return BatonError(ErrorReason.INVALID_ARGUMENT, f"body: {message}", field="body")
    field = _path(cls, first["loc"])
    if kind == "extra_forbidden":
        if first["loc"] == ("prompt",):
            return bad_field(field, "this goes to /v1/completions; a chat has messages")
        if first["loc"] == ("messages",):
            return bad_field(field, "this goes to /v1/chat/completions; a plain completion has a prompt")
        known = sorted(
            StreamOptions.model_fields if field.startswith("stream_options.") else cls.model_fields
        )
        near = difflib.get_close_matches(str(first["loc"][-1]), known, n=1)
        return bad_field(field, f"unknown field; did you mean {near[0]!r}?" if near else "unknown field")
    return bad_field(field, message[0].lower() + message[1:])


def _path(cls: type[GenerationBody], location: tuple[int | str, ...]) -> str:
    """Return "messages[0].content" of a location; names of union arms are left out."""
    path = ""
    for part in location:
        if isinstance(part, int):
            path += f"[{part}]"
        elif part.isidentifier() and part not in ("str", "int", "float", "bool"):
            path += f".{part}" if path else part
    return path or cls.__name__
