"""From what a client sent to a request that can run: checked, rendered, tokenized."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass

from baton.v1.sampling_pb2 import SamplingParams
from services.common.errors import BatonError, ErrorReason
from services.common.ids import new_id
from services.gateway.access import ANYBODY, Caller
from services.gateway.constraints.grammar import after_thinking, lower_grammar
from services.gateway.model import ModelLimits, ServedModel
from services.gateway.sampling import bad_field, check_sampling, for_workers
from services.gateway.text.chat_template import Json, Message
from services.gateway.text.reasoning import begins_thinking

MAX_ID_CHARS = 128
MAX_PRIORITY = 100


@dataclass(frozen=True, slots=True)
class TextInput:
    """Plain text, tokenized without a chat template."""

    text: str
    field: str


@dataclass(frozen=True, slots=True)
class ChatInput:
    """A conversation.

    Attributes:
        tools: shown to the model, as OpenAI's API describes them.
        variables: further ones of the model's template.
    """

    messages: Sequence[Message]
    field: str = "messages"
    tools: Sequence[Json] = ()
    variables: Mapping[str, Json] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TokenInput:
    """Token ids."""

    token_ids: Sequence[int]
    field: str


Input = TextInput | ChatInput | TokenInput


@dataclass(frozen=True, slots=True)
class Request:
    """One prompt and how to answer it.

    Attributes:
        request_id: the client's, or minted; in logs.
        key: unique among all requests of all gateways; workers' ids are made from it.
        token_ids: the prompt; a tuple, since the collector walks through every list.
        prompt_text: its text, template included; None: it came as ids.
        shown_tokens: control tokens whose text the answer shows.
        sampling: as workers get it: max_tokens and seed set.
        stop: strings that end the answer.
        cache_salt: as workers get it, made from the caller's tenant.
        received: time of receipt, time.monotonic(), seconds.
        deadline: when it must be done, same clock.
        text_s: time spent on rendering and tokenizing, seconds.
        caller: whose request it is.
    """

    request_id: str
    key: str
    token_ids: tuple[int, ...]
    prompt_text: str | None
    shown_tokens: Set[int]
    sampling: SamplingParams
    stop: tuple[str, ...]
    priority: int
    cache_salt: str
    received: float
    deadline: float
    text_s: float
    caller: Caller = ANYBODY

    @property
    def num_prompt_tokens(self) -> int:
        """Tokens of the prompt."""
        return len(self.token_ids)

    @property
    def max_tokens(self) -> int:
        """Most tokens of the answer."""
        return self.sampling.max_tokens


async def tokenize(
    model: ServedModel, source: Input, *, add_special_tokens: bool | None = None
) -> tuple[tuple[int, ...], str | None]:
    """Return the prompt's ids, and its text unless it came as ids.

    Args:
        add_special_tokens: None: to plain text only, since templates write their own.
    Raises:
        BatonError: INVALID_ARGUMENT: empty, not valid UTF-8, or refused by the template.
    """
    ids: Sequence[int] = ()
    text: str | None = None
    is_plain = isinstance(source, TextInput)
    match source:
        case TextInput():
            text = source.text
        case ChatInput():
            if not source.messages:
                raise bad_field(source.field, "at least one message is needed")
            text = model.template.render(
                source.messages, tools=source.tools, variables=source.variables, field=source.field
            )
        case TokenInput():
            ids = source.token_ids
    if text is not None:
        _check_utf8(source.field, text)
        special = is_plain if add_special_tokens is None else add_special_tokens
        ids = await model.tokenizer.encode_async(text, add_special_tokens=special)
    if not ids or (is_plain and not text):
        raise bad_field(source.field, "the prompt is empty; at least one token is needed")
    return tuple(ids), text


async def prepare(
    model: ServedModel,
    source: Input,
    sampling: SamplingParams,
    *,
    prefix: str = "",
    grammar_field: str = "",
    priority: int = 0,
    cache_salt: str = "",
    caller: Caller = ANYBODY,
    request_id: str = "",
    shown_tokens: Set[int] = frozenset(),
    timeout_s: float,
) -> Request:
    """Check a request and tokenize its prompt.

    Args:
        prefix: of sampling fields in messages: "sampling." in gRPC.
        cache_salt: the client's own.
        grammar_field: what to call sampling.grammar in messages; empty: prefix + "grammar".
        timeout_s: from now until the deadline.
    Raises:
        BatonError: INVALID_ARGUMENT, CONTEXT_LENGTH_EXCEEDED (both name field and limit), NO_WORKER.
    """
    received = time.monotonic()
    limits = model.limits()
    if len(request_id) > MAX_ID_CHARS:
        raise bad_field("request_id", f"at most {MAX_ID_CHARS} characters, got {len(request_id)}")
    if len(cache_salt) > MAX_ID_CHARS:
        raise bad_field("cache_salt", f"at most {MAX_ID_CHARS} characters, got {len(cache_salt)}")
    if not -MAX_PRIORITY <= priority <= MAX_PRIORITY:
        raise bad_field("priority", f"must be from {-MAX_PRIORITY} to {MAX_PRIORITY}, got {priority}")
    check_sampling(sampling, vocab_size=limits.vocab_size, prefix=prefix)
    grammar = ""
    if sampling.HasField("grammar"):
        grammar = await lower_grammar(sampling.grammar, grammar_field or f"{prefix}grammar")
    started = time.monotonic()
    token_ids, prompt_text = await tokenize(model, source)
    text_s = time.monotonic() - started
    max_tokens = _check_length(token_ids, sampling, limits, source.field, prefix)
    if grammar:
        grammar = after_thinking(
            grammar,
            may_think=isinstance(source, ChatInput) and model.template.marks_reasoning,
            is_thinking=begins_thinking(prompt_text or ""),
        )
    key = new_id()
    return Request(
        request_id=request_id or key,
        key=key,
        token_ids=token_ids,
        prompt_text=prompt_text,
        shown_tokens=shown_tokens,
        sampling=for_workers(sampling, max_tokens, grammar),
        stop=tuple(sampling.stop),
        priority=priority,
        cache_salt=caller.cache_salt(cache_salt),
        received=received,
        deadline=received + timeout_s,
        text_s=text_s,
        caller=caller,
    )


def replicate(request: Request, count: int) -> list[Request]:
    """Return `count` requests for different answers to one prompt: the seed of each is one higher."""
    requests = [request]
    for index in range(1, count):
        sampling = SamplingParams()
        sampling.CopyFrom(request.sampling)
        sampling.seed = (sampling.seed + index) % 2**64
        requests.append(dataclasses.replace(request, key=new_id(), sampling=sampling))
    return requests


def _check_length(
    token_ids: Sequence[int], sampling: SamplingParams, limits: ModelLimits, field: str, prefix: str
) -> int:
    """Return the most tokens to generate."""
    if max(token_ids) >= limits.vocab_size or min(token_ids) < 0:
        raise bad_field(field, f"token ids must be from 0 to {limits.vocab_size - 1}")
    room = limits.context_length - len(token_ids)
    if room < 1:
        raise _too_long(
            field,
            f"the prompt has {len(token_ids)} tokens; at most {limits.context_length - 1} leave room for an "
            f"answer in the context of {limits.context_length}",
        )
    if not sampling.HasField("max_tokens"):
        return room
    if sampling.max_tokens > room:
        raise _too_long(
            prefix + "max_tokens",
            f"{len(token_ids)} prompt tokens and {sampling.max_tokens} to generate exceed the context of "
            f"{limits.context_length} tokens",
        )
    return sampling.max_tokens


def _too_long(field: str, message: str) -> BatonError:
    return BatonError(ErrorReason.CONTEXT_LENGTH_EXCEEDED, f"{field}: {message}", field=field)


def _check_utf8(field: str, text: str) -> None:
    """JSON can smuggle in half of a surrogate pair, which no tokenizer takes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise bad_field(field, "must be valid UTF-8; it holds an unpaired surrogate") from None
