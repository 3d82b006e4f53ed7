"""Runs the steps that the scheduler makes: copies, forward, sampling."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from engine.backends.base import Backend, KVPool
from engine.backends.batch import IntArray
from engine.models.transformer import Transformer
from engine.request import Request
from engine.runner.batch import batch_metadata, sample_rows, token_ids
from engine.runner.block_store import PlainBlockStore, move_blocks
from engine.runner.prompt_logprobs import foretelling_rows, is_wanted, prompt_logprobs
from engine.step import BlockCopy, Draw, LayersWritten, Logprobs, SchedulerOutput, StepResult


class RowSampler(Protocol):
    """Draws one token a row."""

    def sample(self, logits: torch.Tensor, requests: Sequence[Request]) -> list[Draw]:
        """logits float32[R, V], one row a request; no row suffers for another."""
        ...

    def forget(self, request_ids: Iterable[str]) -> None:
        """Drop what is kept of requests that ended."""
        ...


@dataclass(frozen=True, slots=True)
class DoneStep:
    """A step that is over: the host waits for nothing."""

    result: StepResult
    layers: Sequence[LayersWritten] = ()

    def is_over(self) -> bool:
        """It is."""
        return True

    def wait(self) -> StepResult:
        """What the step sampled."""
        return self.result


class ModelRunner:
    """One model over its pools; lives on the engine thread."""

    def __init__(
        self,
        model: Transformer,
        backend: Backend,
        pool: KVPool,
        sampler: RowSampler,
        num_host_slots: int = 0,
    ) -> None:
        """Put the parts together.

        Args:
            pool: of cache group 0, the only one that this family has.
            num_host_slots: blocks that can be copied to the host.
        """
        self._model = model
        self._backend = backend
        self._pool = pool
        self._sampler = sampler
        self._store = PlainBlockStore(pool, num_host_slots)

    def prepare(self) -> bool:
        """Nothing is made ahead."""
        return False

    @torch.inference_mode()
    def launch(self, output: SchedulerOutput) -> DoneStep:
        """Run one step. Modifies the KV of the copied blocks and of the scheduled slots, nothing else."""
        self._sampler.forget(output.finished_request_ids)
        move_blocks(output, self._store)
        self._copy(output.copies)
        rows = output.rows
        if not rows:
            return DoneStep(StepResult({}))
        step = self._backend.begin(batch_metadata(rows, 0, self._pool.group.block_size), self._pool)
        tokens = self._upload(token_ids(rows))
        wanted = lasts = sample_rows(rows)
        if is_wanted(rows):
            wanted = np.union1d(lasts, foretelling_rows(rows))
        logits = self._model.forward(tokens, step, self._pool, self._upload(wanted))
        foretold: dict[str, list[Logprobs]] = {}
        if wanted is not lasts:
            foretold = prompt_logprobs(rows, logits[np.searchsorted(wanted, foretelling_rows(rows))])
            logits = logits[np.searchsorted(wanted, lasts)]
        requests = [row.request for row in rows if row.sample]
        sampled = self._sampler.sample(logits, requests) if requests else []
        return DoneStep(
            StepResult(
                {request.request_id: token for request, token in zip(requests, sampled, strict=True)},
                foretold,
            )
        )

    def _upload(self, indices: IntArray) -> torch.Tensor:
        return self._backend.upload(torch.from_numpy(indices), torch.int32)

    def _copy(self, copies: Sequence[BlockCopy]) -> None:
        if copies:
            self._backend.block_copy(self._pool, [copy.src for copy in copies], [copy.dst for copy in copies])
