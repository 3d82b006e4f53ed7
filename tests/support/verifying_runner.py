"""A runner without a model that notices every wrong block.

The "KV" of a position is a fingerprint of its tokens up to there. A step reads the
fingerprints of all earlier positions through the block table and asserts each of
them, writes its own, and derives the next token from the last one it wrote. So a
block that was freed too early, shared wrongly, overwritten or not copied is seen.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from engine.request import Request
from engine.sampler.sampler import Sampler
from engine.step import SampledToken, SchedulerOutput, StepResult
from tests.support.engine_builders import EOS, VOCAB_SIZE

POISON = -1
_MASK = (1 << 62) - 1


def fingerprints(token_ids: Sequence[int], salt: str = "") -> list[int]:
    """One number a position, that depends on the salt and all tokens up to there."""
    value, result = zlib.crc32(salt.encode()), []
    for token_id in token_ids:
        value = (value * 6364136223846793005 + token_id * 1442695040888963407 + 1) & _MASK
        result.append(value)
    return result


def next_token(fingerprint: int) -> int:
    """Never an end-of-sequence token."""
    return (fingerprint >> 20) % 97


def expected_tokens(request: Request, count: int) -> list[int]:
    """What an undisturbed greedy run draws after the tokens that the request has now."""
    tokens = list(request.token_ids)
    value = fingerprints(tokens, request.cache_salt)[-1]
    for _ in range(count):
        tokens.append(next_token(value))
        value = (value * 6364136223846793005 + tokens[-1] * 1442695040888963407 + 1) & _MASK
    return tokens[len(tokens) - count :]


@dataclass(frozen=True)
class DoneStep:
    result: StepResult

    def wait(self) -> StepResult:
        return self.result


class VerifyingRunner:
    """Checks each step against the contract and its own KV store.

    Attributes:
        fail_steps: so many next steps raise.
        num_tokens_run: request id -> tokens run for it.
        outputs: every step that it got.
    """

    def __init__(
        self, num_blocks: int, block_sizes: Sequence[int] = (4,), sampler: Sampler | None = None
    ) -> None:
        self.store = [np.full((num_blocks, size), POISON, dtype=np.int64) for size in block_sizes]
        self.fail_steps = 0
        self.num_tokens_run: dict[str, int] = {}
        self.outputs: list[SchedulerOutput] = []
        self._sampler = sampler
        self._fingerprints: dict[str, list[int]] = {}

    def launch(self, output: SchedulerOutput) -> DoneStep:
        self.outputs.append(output)
        if self.fail_steps:
            self.fail_steps -= 1
            raise RuntimeError("the device is on fire")
        if self._sampler is not None:
            self._sampler.forget(output.finished_request_ids)
        ids = [row.request.request_id for row in output.rows]
        assert len(set(ids)) == len(ids), "a request twice in a step"
        ones = [row.num_tokens == 1 for row in output.rows]
        assert ones == sorted(ones, reverse=True), "one-token rows come first"
        for copy in output.copies:
            self.store[copy.group][copy.dst] = self.store[copy.group][copy.src]
        values = {
            row.request.request_id: self._run_row(row.request, row.start, row.num_tokens)
            for row in output.rows
        }
        sampling = [row.request for row in output.rows if row.sample]
        for row in output.rows:
            assert row.sample == (row.start + row.num_tokens == row.request.num_tokens)
        return DoneStep(StepResult(self._sample(sampling, values)))

    def fill(self, request: Request, block_ids: Sequence[Sequence[int]], start: int) -> None:
        """Write the KV of tokens[start:], as another worker would."""
        for group, ids in enumerate(block_ids):
            self._write(group, ids, start, fingerprints(request.token_ids, request.cache_salt)[start:])

    def read(self, group: int, block_ids: Sequence[int], num_tokens: int) -> list[int]:
        values: list[int] = self.store[group][list(block_ids)].reshape(-1)[:num_tokens].tolist()
        return values

    def poison(self, group: int, block_ids: Sequence[int]) -> None:
        self.store[group][list(block_ids)] = POISON

    def _run_row(self, request: Request, start: int, num_tokens: int) -> int:
        assert num_tokens >= 1
        assert request.num_computed_tokens == start
        end = start + num_tokens
        known = fingerprints(request.token_ids[:end], request.cache_salt)
        for group, ids in enumerate(request.block_ids):
            assert self.read(group, ids, start) == known[:start], f"{request.request_id}: wrong KV in a block"
            self._write(group, ids, start, known[start:])
        self.num_tokens_run[request.request_id] = self.num_tokens_run.get(request.request_id, 0) + num_tokens
        return known[-1]

    def _write(self, group: int, block_ids: Sequence[int], start: int, values: Sequence[int]) -> None:
        size = self.store[group].shape[1]
        positions = np.arange(start, start + len(values))
        self.store[group][np.array(block_ids)[positions // size], positions % size] = values

    def _sample(self, requests: Sequence[Request], values: dict[str, int]) -> dict[str, SampledToken]:
        if self._sampler is None:
            return {r.request_id: SampledToken(next_token(values[r.request_id])) for r in requests}
        if not requests:
            return {}
        logits = torch.from_numpy(
            np.stack([np.random.default_rng(values[r.request_id]).normal(0, 2, VOCAB_SIZE) for r in requests])
        ).float()
        logits[:, list(EOS)] = -20.0
        tokens = self._sampler.sample(logits, requests)
        return {r.request_id: token for r, token in zip(requests, tokens, strict=True)}
