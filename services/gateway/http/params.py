"""From an HTTP body to the parameters that sessions take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from baton.v1.sampling_pb2 import SamplingParams
from services.gateway.http.schema import ChatBody, ChatTurn, CompletionBody, SamplingBody, Tool
from services.gateway.request import ChatInput, Input, TextInput, TokenInput
from services.gateway.sampling import bad_field
from services.gateway.text.chat_template import Json, Message

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
    params = base_sampling(body)
    max_tokens = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
    if max_tokens is not None:
        params.max_tokens = max_tokens
    if body.logprobs:
        params.logprobs = body.top_logprobs or 0
    elif body.top_logprobs is not None:
        raise bad_field("top_logprobs", "needs logprobs to be true")
    return params


def completion_sampling(body: CompletionBody) -> SamplingParams:
    """Return the sampling parameters of a plain completion.

    Raises:
        BatonError: INVALID_ARGUMENT: fields contradict each other.
    """
    best_of = num_samples(body)
    if best_of < (body.n or 1):
        raise bad_field("best_of", f"must be at least n ({body.n}), got {best_of}")
    if best_of > (body.n or 1) and body.stream:
        raise bad_field("best_of", "what is best is known at the end only; set stream to false")
    if body.prompt_logprobs is not None and body.stream:
        raise bad_field("prompt_logprobs", "they come with a whole answer only; set stream to false")
    params = base_sampling(body)
    params.max_tokens = DEFAULT_COMPLETION_TOKENS if body.max_tokens is None else body.max_tokens
    if is_scoring(body):
        params.max_tokens = 1
    if body.prompt_logprobs is not None:
        params.prompt_logprobs = body.prompt_logprobs
    if body.logprobs is not None:
        params.logprobs = body.logprobs
        if body.echo:
            params.prompt_logprobs = max(body.logprobs, params.prompt_logprobs)
    elif best_of > (body.n or 1):
        params.logprobs = 0  # to choose by
    return params


def is_scoring(body: CompletionBody) -> bool:
    """Tell whether the prompt is to be echoed with nothing after it; one token is drawn and dropped."""
    return bool(body.echo) and body.max_tokens == 0


def num_samples(body: CompletionBody) -> int:
    """Return how many answers to draw for each prompt."""
    return (body.n or 1) if body.best_of is None else body.best_of


def chat_input(
    turns: Sequence[ChatTurn],
    tools: Sequence[Tool] = (),
    variables: Mapping[str, Json] | None = None,
) -> ChatInput:
    """Return the conversation."""
    return ChatInput([_message(turn) for turn in turns], tools=show_tools(tools), variables=variables or {})


def show_tools(tools: Sequence[Tool]) -> list[Json]:
    """Return tools as templates take them."""
    return [tool.model_dump(exclude_none=True) for tool in tools]


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


def base_sampling(body: SamplingBody) -> SamplingParams:
    """Return the parameters that all bodies have.

    Raises:
        BatonError: INVALID_ARGUMENT: a key of logit_bias is no token id.
    """
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
