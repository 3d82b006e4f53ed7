"""Checks of a request against the limits of this engine, before it is queued."""

from __future__ import annotations

from dataclasses import dataclass

from engine.errors import InvalidRequestError, OutOfBlocksError
from engine.kv.layout import CacheGroup
from engine.request import GivenBlocks, Request


@dataclass(frozen=True, slots=True)
class Limits:
    """What a request is checked against.

    Attributes:
        vocab_size: token ids are below it.
        context_length: most tokens of a request, prompt and output.
        groups: cache groups of the pool.
        num_blocks: blocks of each group.
    """

    vocab_size: int
    context_length: int
    groups: tuple[CacheGroup, ...]
    num_blocks: int

    def check(self, request: Request) -> None:
        """Check one request. Pure; any thread.

        Raises:
            InvalidRequestError: the message names field and limit.
            OutOfBlocksError: it could never fit the pool.
        """
        self._check_tokens(request)
        self._check_sampling(request)
        if request.hold_blocks and request.max_new_tokens != 1:
            raise InvalidRequestError(
                "max_new_tokens", f"must be 1 with hold_blocks, got {request.max_new_tokens}"
            )
        if request.grammar is not None and (request.sampling.ignore_eos or request.sampling.min_tokens):
            raise InvalidRequestError("grammar", "it says where the answer ends: no ignore_eos or min_tokens")
        if request.max_new_tokens is not None and request.max_new_tokens < 1:
            raise InvalidRequestError("max_new_tokens", f"must be at least 1, got {request.max_new_tokens}")
        if request.given is not None:
            self._check_given(request, request.given)
            return
        num_slots = request.num_tokens + (not request.hold_blocks)
        for group in self.groups:
            need = group.num_blocks_for(num_slots)
            if need > self.num_blocks:
                raise OutOfBlocksError(
                    f"token_ids: {request.num_tokens} tokens need {need} KV blocks, "
                    f"the pool has {self.num_blocks} (kv_bytes)"
                )

    def _check_given(self, request: Request, given: GivenBlocks) -> None:
        if not request.hold_blocks:
            raise InvalidRequestError("given", "needs hold_blocks: another worker goes on with the request")
        if not 0 <= given.num_computed_tokens < request.num_tokens:
            raise InvalidRequestError(
                "given", f"{given.num_computed_tokens} of {request.num_tokens} tokens are computed already"
            )
        for group, block_ids in zip(self.groups, given.block_ids, strict=True):
            need = group.num_blocks_for(request.num_tokens)
            if len(block_ids) < need or given.num_computed_tokens % group.block_size:
                raise InvalidRequestError(
                    "given",
                    f"{len(block_ids)} blocks of {group.name!r}, {given.num_computed_tokens} tokens of them "
                    f"computed; {need} blocks are needed, and whole ones computed",
                )

    def _check_tokens(self, request: Request) -> None:
        num_tokens = request.num_tokens
        if not 1 <= num_tokens < self.context_length:
            raise InvalidRequestError(
                "token_ids",
                f"must be 1 to {self.context_length - 1} tokens (context length), got {num_tokens}",
            )
        if min(request.token_ids) < 0 or max(request.token_ids) >= self.vocab_size:
            raise InvalidRequestError("token_ids", f"must be from 0 to {self.vocab_size - 1} (vocabulary)")
        if not 1 <= request.num_prompt_tokens <= num_tokens:
            raise InvalidRequestError(
                "num_prompt_tokens", f"must be from 1 to {num_tokens}, got {request.num_prompt_tokens}"
            )

    def _check_sampling(self, request: Request) -> None:
        sampling = request.sampling
        if sampling.max_tokens is not None and request.num_output_tokens >= sampling.max_tokens:
            raise InvalidRequestError(
                "max_tokens", f"{sampling.max_tokens}, and {request.num_output_tokens} are there already"
            )
        for name, ids in (("logit_bias", sampling.logit_bias), ("stop_token_ids", sampling.stop_token_ids)):
            for token_id in ids:
                if not 0 <= token_id < self.vocab_size:
                    raise InvalidRequestError(
                        name, f"token ids must be from 0 to {self.vocab_size - 1}, got {token_id}"
                    )
