"""From protobuf to an engine request, and the checks that the engine does not make."""

from __future__ import annotations

import asyncio
from array import array

from baton.v1 import decode_pb2, prefill_pb2, sampling_pb2
from engine.errors import InvalidRequestError
from engine.grammar.compiler import GrammarCompiler
from engine.grammar.state import GrammarState
from engine.request import Request
from engine.sampling_params import SamplingParams
from services.common.errors import BatonError, ErrorReason

MAX_PRIORITY = 100


RequestMessage = prefill_pb2.PrefillRequest | decode_pb2.ReserveRequest


async def compile_grammar(message: RequestMessage, grammars: GrammarCompiler) -> GrammarState | None:
    """Return the state before the first token of the answer; None: it is free.

    Raises:
        BatonError: INVALID_ARGUMENT, field "sampling.grammar".
    """
    if not message.sampling.HasField("grammar"):
        return None
    if message.sampling.grammar.WhichOneof("kind") != "lark":
        raise invalid("sampling.grammar", "a worker takes lark alone; the gateway makes it of the others")
    try:
        return await asyncio.to_thread(grammars.compile, message.sampling.grammar.lark)
    except InvalidRequestError as error:
        raise _bad_sampling(error) from error


def engine_request(
    message: RequestMessage,
    engine_id: str,
    *,
    grammar: GrammarState | None = None,
    hold_blocks: bool = False,
    max_new_tokens: int | None = None,
) -> Request:
    """Make the engine's request of a message, under the engine's own id; the engine checks the tokens.

    Raises:
        BatonError: INVALID_ARGUMENT; names field and limit.
    """
    if not message.request_id:
        raise invalid("request_id", "must not be empty")
    if not -MAX_PRIORITY <= message.priority <= MAX_PRIORITY:
        raise invalid("priority", f"must be from -{MAX_PRIORITY} to {MAX_PRIORITY}, got {message.priority}")
    return Request(
        request_id=engine_id,
        token_ids=array("I", message.token_ids),
        num_prompt_tokens=message.num_prompt_tokens,
        sampling=sampling_params(message.sampling),
        priority=message.priority,
        cache_salt=message.cache_salt,
        grammar=grammar,
        hold_blocks=hold_blocks,
        max_new_tokens=max_new_tokens,
    )


def sampling_params(message: sampling_pb2.SamplingParams) -> SamplingParams:
    """Return the engine's sampling parameters; stop strings are the gateway's affair.

    Raises:
        BatonError: INVALID_ARGUMENT, field "sampling.<name>".
    """
    try:
        return SamplingParams(
            max_tokens=message.max_tokens if message.HasField("max_tokens") else None,
            temperature=message.temperature if message.HasField("temperature") else 1.0,
            top_p=message.top_p if message.HasField("top_p") else 1.0,
            top_k=message.top_k,
            min_p=message.min_p,
            repetition_penalty=message.repetition_penalty if message.HasField("repetition_penalty") else 1.0,
            presence_penalty=message.presence_penalty,
            frequency_penalty=message.frequency_penalty,
            logit_bias=dict(message.logit_bias),
            seed=message.seed,
            stop_token_ids=tuple(message.stop_token_ids),
            ignore_eos=message.ignore_eos,
            min_tokens=message.min_tokens,
            logprobs=message.logprobs if message.HasField("logprobs") else None,
            prompt_logprobs=message.prompt_logprobs if message.HasField("prompt_logprobs") else None,
        )
    except InvalidRequestError as error:
        raise _bad_sampling(error) from error


def _bad_sampling(error: InvalidRequestError) -> BatonError:
    return BatonError(ErrorReason.INVALID_ARGUMENT, f"sampling.{error}", field=f"sampling.{error.field}")


def invalid(field: str, message: str) -> BatonError:
    """Return the error of one bad field."""
    return BatonError(ErrorReason.INVALID_ARGUMENT, f"{field}: {message}", field=field)
