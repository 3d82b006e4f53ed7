"""What answers look like: the schemas of the OpenAPI page, to which tests hold the answers."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, JsonValue


class _Answer(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class PromptDetails(_Answer):
    """Of the prompt's tokens, those that a prefix cache held."""

    cached_tokens: int


class CompletionUsage(_Answer):
    """Token counts; a prompt is counted once, whatever the number of answers."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails


class FunctionCall(_Answer):
    """`arguments` is the text of a JSON object."""

    name: str
    arguments: str


class ToolCallAnswer(_Answer):
    """A call that the model wants made."""

    id: str
    type: Literal["function"]
    function: FunctionCall


class ChatMessageAnswer(_Answer):
    """The assistant's turn; the last two are left out when empty."""

    role: Literal["assistant"]
    content: str | None
    refusal: None
    reasoning_content: str = ""
    tool_calls: list[ToolCallAnswer] = []


class TokenLogprobAnswer(_Answer):
    """Natural logarithm; -9999 stands for less."""

    token: str
    logprob: float
    bytes: list[int]


class ChatTokenLogprob(TokenLogprobAnswer):
    """The drawn token and the likeliest ones."""

    top_logprobs: list[TokenLogprobAnswer]


class ChatLogprobs(_Answer):
    """One entry a token."""

    content: list[ChatTokenLogprob]
    refusal: None


class ChatChoice(_Answer):
    """One answer."""

    index: int
    message: ChatMessageAnswer
    logprobs: ChatLogprobs | None
    finish_reason: Literal["stop", "length", "tool_calls"]


class ChatCompletion(_Answer):
    """A complete answer; a stream has chat.completion.chunk objects with `delta`s instead."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: CompletionUsage


class TextLogprobs(_Answer):
    """One entry a token; offsets count characters of the choice's text. Of an echoed prompt's first: null."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class PromptLogprob(_Answer):
    """Of one token, at one place of the prompt."""

    logprob: float
    decoded_token: str


class TextChoice(_Answer):
    """One answer; prompt_logprobs, by token id, only if asked for."""

    index: int
    text: str
    logprobs: TextLogprobs | None
    finish_reason: Literal["stop", "length"]
    prompt_logprobs: list[dict[str, PromptLogprob] | None] = []


class TextCompletion(_Answer):
    """A complete answer; a stream has the same objects, each with a part."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[TextChoice]
    usage: CompletionUsage


class OutputPart(BaseModel):
    """A part of an item."""

    type: Literal["output_text", "reasoning_text"]
    text: str
    annotations: list[JsonValue] = []
    logprobs: list[ChatTokenLogprob] = []


class OutputCall(BaseModel):
    """A call of a tool."""

    id: str
    type: Literal["function_call"]
    status: Literal["completed"]
    call_id: str
    name: str
    arguments: str


class OutputItem(BaseModel):
    """The message, or the reasoning before it."""

    id: str
    type: Literal["message", "reasoning"]
    status: Literal["completed", "incomplete"]
    content: list[OutputPart]


class InputDetails(_Answer):
    """Of the input's tokens, those that a prefix cache held."""

    cached_tokens: int
    cache_write_tokens: int


class OutputDetails(_Answer):
    """Of the output's tokens, those before the message began."""

    reasoning_tokens: int


class ResponseUsage(_Answer):
    """Token counts."""

    input_tokens: int
    input_tokens_details: InputDetails
    output_tokens: int
    output_tokens_details: OutputDetails
    total_tokens: int


class ResponseAnswer(BaseModel):
    """A complete response; fields that only repeat the request are not listed."""

    id: str
    object: Literal["response"]
    created_at: int
    status: Literal["completed", "incomplete"]
    model: str
    output: list[OutputItem | OutputCall]
    usage: ResponseUsage


class ModelAnswer(_Answer):
    """A model that can be asked for."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class ModelList(_Answer):
    """The models that have a worker of each kind."""

    object: Literal["list"]
    data: list[ModelAnswer]


class Tokenized(_Answer):
    """Token ids; max_model_len is null while no worker is ready."""

    count: int
    max_model_len: int | None
    tokens: list[int]
    token_strs: list[str] = []


class Detokenized(_Answer):
    """The text of token ids."""

    prompt: str


class StatusAnswer(_Answer):
    """All is well."""

    status: str


class ErrorDetail(_Answer):
    """`code` is the reason, as in the table of errors; `param` the field at fault."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorAnswer(_Answer):
    """Why there is no answer."""

    error: ErrorDetail
