"""Sampling on the device; engine/sampler/ says what each parameter means, cuda/sampling.cu does it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from engine.backends.cuda.sampling import IN_PROMPT, ROW, logprobs, new_history, sample
from engine.grammar.bitmask import allowed_tokens, num_words
from engine.request import Request
from engine.runner.cuda.batch import Batch
from engine.sampler.adjustments import has_penalties


@dataclass(frozen=True, slots=True)
class HostRows:
    """A step's sampling parameters on the host.

    Attributes:
        table: R of ROW.
        bias_tokens, bias_values, masked: lists that the rows point into.
        allowed: int32[rows with a grammar, ceil(V / 32)], bitmasks that the rows point into.
        wishes: int32[R], log-probabilities wanted, -1: none.
    """

    table: npt.NDArray[np.void]
    bias_tokens: npt.NDArray[np.int32]
    bias_values: npt.NDArray[np.float32]
    masked: npt.NDArray[np.int32]
    allowed: npt.NDArray[np.int32]
    wishes: npt.NDArray[np.int32]

    @property
    def parts(self) -> tuple[npt.NDArray[np.generic], ...]:
        """What goes to the device."""
        return (
            self.table,
            self.bias_tokens,
            self.bias_values,
            self.masked,
            self.allowed.ravel(),
            self.wishes,
        )


@dataclass(slots=True)
class _DeviceRows:
    """A sampling.RowTable."""

    num_rows: int
    any_adjusted: bool
    table: torch.Tensor
    bias_tokens: torch.Tensor
    bias_values: torch.Tensor
    masked: torch.Tensor


@dataclass(frozen=True, slots=True)
class Drawn:
    """On the device: tokens int32[R]; where wished for, float32[R, 21] and int32[R, 21] of logprobs()."""

    tokens: torch.Tensor
    values: torch.Tensor | None
    ids: torch.Tensor | None


class DeviceSampler:
    """Parameters by slot, and on the device the token counts of requests with penalties."""

    def __init__(
        self, slots: int, vocab_size: int, eos_token_ids: frozenset[int], device: torch.device
    ) -> None:
        self._vocab_size = vocab_size
        self._eos_token_ids = tuple(sorted(eos_token_ids))
        self._device = device
        self._rows = np.zeros(slots, ROW)
        self._wishes = np.full(slots, -1, np.int32)
        self._special = np.zeros(slots, np.bool_)
        # Tokens of the slot's request that its row of the history counts, those of steps under way included.
        self._counted = [0] * slots
        self._history: torch.Tensor | None = None
        self._work: torch.Tensor | None = None

    def assign(self, slot: int, request: Request) -> None:
        """Take over a request's parameters."""
        sampling = request.sampling
        row = np.zeros((), ROW)
        row["seed"], row["top_k"], row["temperature"] = sampling.seed, sampling.top_k, sampling.temperature
        row["top_p"], row["min_p"] = sampling.top_p, sampling.min_p
        row["repetition"], row["presence"] = sampling.repetition_penalty, sampling.presence_penalty
        row["frequency"], row["history"] = sampling.frequency_penalty, -1
        self._rows[slot] = row
        self._wishes[slot] = -1 if sampling.logprobs is None else sampling.logprobs
        self._special[slot] = bool(
            sampling.logit_bias or sampling.min_tokens or request.grammar or has_penalties(sampling)
        )
        self._counted[slot] = 0

    def rows(self, batch: Batch) -> HostRows:
        """Parameters of a step; brings token counts up to date on the device."""
        slots = batch.sample_slots
        table = self._rows[slots]
        table["position"] = batch.sample_positions
        bias_tokens: list[int] = []
        bias_values: list[float] = []
        masked: list[int] = []
        grammars: list[Request] = []
        for index in np.flatnonzero(self._special[slots]):
            row = table[index]
            request, sampling = batch.sampled[index].request, batch.sampled[index].request.sampling
            position = int(row["position"])
            row["bias_begin"], row["mask_begin"] = len(bias_tokens), len(masked)
            bias_tokens += sampling.logit_bias.keys()
            bias_values += sampling.logit_bias.values()
            if position - request.num_prompt_tokens < sampling.min_tokens:
                masked += (*self._eos_token_ids, *sampling.stop_token_ids)
            row["bias_end"], row["mask_end"] = len(bias_tokens), len(masked)
            if has_penalties(sampling):
                row["history"] = slots[index]
                self._count(int(slots[index]), request, position)
            if request.grammar is not None:
                grammars.append(request)
                row["allowed"] = len(grammars)
            row["adjusted"] = 1
        return HostRows(
            table,
            np.array(bias_tokens, np.int32),
            np.array(bias_values, np.float32),
            np.array(masked, np.int32),
            self._allowed(grammars),
            self._wishes[slots],
        )

    def draw(self, logits: torch.Tensor, rows: HostRows, parts: Sequence[torch.Tensor]) -> Drawn:
        """Launch the draws of a step.

        Args:
            logits: float32[R, V].
            parts: rows.parts on the device, as bytes.
        """
        table, bias_tokens, bias_values, masked, allowed, wishes = parts
        any_adjusted = bool(rows.table["adjusted"].any())
        work = None
        if any_adjusted:
            if self._work is None or len(self._work) < logits.numel():
                self._work = torch.empty_like(logits).view(-1)
            work = self._work[: logits.numel()]
        device_rows = _DeviceRows(
            num_rows=len(rows.table),
            any_adjusted=any_adjusted,
            table=table,
            bias_tokens=bias_tokens,
            bias_values=bias_values,
            masked=masked,
        )
        bitmasks = allowed.view(torch.int32).view(rows.allowed.shape) if len(rows.allowed) else None
        tokens = sample(logits, device_rows, self._history, work, bitmasks)
        if (rows.wishes < 0).all():
            return Drawn(tokens, None, None)
        return Drawn(tokens, *logprobs(logits, wishes, tokens))

    def _allowed(self, requests: Sequence[Request]) -> npt.NDArray[np.int32]:
        words = allowed_tokens(requests, self._vocab_size)
        return np.empty((0, num_words(self._vocab_size)), np.int32) if words is None else words

    def _count(self, slot: int, request: Request, position: int) -> None:
        """Make the slot's history count the request's first `position` tokens; the draw adds its own."""
        if self._counted[slot] != position:
            if self._history is None:
                self._history = new_history(len(self._rows), self._vocab_size, self._device)
            counts = np.zeros(self._vocab_size, np.int16)
            counts[_distinct(request.token_ids[: request.num_prompt_tokens])] = IN_PROMPT
            np.add.at(counts, request.token_ids[request.num_prompt_tokens : position], 1)
            self._history[slot].copy_(torch.from_numpy(counts).pin_memory(), non_blocking=True)
        self._counted[slot] = position + 1


def _distinct(token_ids: Iterable[int]) -> list[int]:
    return list(set(token_ids))
