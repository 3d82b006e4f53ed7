"""From an HTTP body to the parameters that sessions take."""

from __future__ import annotations

from baton.v1.sampling_pb2 import SamplingParams
from services.gateway.http.schema import ChatBody, ChatTurn, CompletionBody, GenerationBody
from services.gateway.request import ChatInput, Input, TextInput, TokenInput
from services.gateway.sampling import bad_field
from services.gateway.text.chat_template import Message

# OpenAI's default of plain completions.
DEFAULT_COMPLETION_TOKENS = 16
MAX_PROMPTS = 128

_PLAIN = (
    "temperature",
    "top_p",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "ignore_eos",
    "min_tokens",
    "stop_token_ids",
)


def chat_sampling(body: ChatBody) -> SamplingParams:
    """Return the sampling parameters of a chat.

    Raises:
        BatonError: INVALID_ARGUMENT: fields contradict each other.
    """
    params = _sampling(body)
    max_tokens = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
    if max_tokens is not None:
        params.max_tokens = max_tokens
    if body.logprobs:
        params.logprobs = body.top_logprobs or 0
    elif body.top_logprobs is not None:
        raise bad_field("top_logprobs", "needs logprobs to be true")
    return params


def completion_sampling(body: CompletionBody) -> SamplingParams:
    """Return the sampling parameters of a plain completion."""
    params = _sampling(body)
    params.max_tokens = DEFAULT_COMPLETION_TOKENS if body.max_tokens is None else body.max_tokens
    if body.logprobs is not None:
        params.logprobs = body.logprobs
    return params


def chat_input(body: ChatBody) -> ChatInput:
    """Return the conversation."""
    return ChatInput([_message(turn) for turn in body.messages])


def completion_inputs(body: CompletionBody) -> list[Input]:
    """Return the prompts: one text or list of ids, or several of either.

    Raises:
        BatonError: INVALID_ARGUMENT: none, or too many.
    """
    prompt = body.prompt
    if isinstance(prompt, str):
        return [TextInput(prompt, "prompt")]
    if not prompt:
        raise bad_field("prompt", "the list is empty")
    ids = [item for item in prompt if isinstance(item, int)]
    if ids:
        return [TokenInput(ids, "prompt")]
    if len(prompt) > MAX_PROMPTS:
        raise bad_field("prompt", f"at most {MAX_PROMPTS} prompts, got {len(prompt)}")
    inputs: list[Input] = []
    for i, item in enumerate(prompt):
        if isinstance(item, str):
            inputs.append(TextInput(item, f"prompt[{i}]"))
        elif isinstance(item, list):
            inputs.append(TokenInput(item, f"prompt[{i}]"))
    return inputs


def _sampling(body: GenerationBody) -> SamplingParams:
    given = {name: value for name in _PLAIN if (value := getattr(body, name)) is not None}
    params = SamplingParams(**given)
    if body.top_k is not None:
        params.top_k = max(body.top_k, 0)  # -1 is "all" in other servers
    if body.seed is not None:
        params.seed = body.seed % 2**64
    if body.stop is not None:
        params.stop.extend([body.stop] if isinstance(body.stop, str) else body.stop)
    for key, bias in (body.logit_bias or {}).items():
        if not key.isdecimal() or int(key) >= 2**32:
            raise bad_field("logit_bias", f"keys must be token ids, got {key!r}")
        params.logit_bias[int(key)] = bias
    return params


def _message(turn: ChatTurn) -> Message:
    message = turn.model_dump(exclude_none=True)
    # A model's template knows "system"; "developer" is OpenAI's newer name of it.
    if message["role"] == "developer":
        message["role"] = "system"
    return message
