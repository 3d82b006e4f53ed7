"""A step under way."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from engine.errors import SamplingError
from engine.runner.cuda.foretold import ForetoldValues
from engine.runner.cuda.sampler import Drawn
from engine.sampler.sampler import NOT_FINITE
from engine.step import Draw, LayersWritten, Logprobs, SampledToken, ScheduledRow, StepResult


class CudaPendingStep:
    """Results on their way to pinned memory, and the event that says that they are there.

    Attributes:
        layers: see PendingStep; set by whoever launched the step.
        is_over: whether the device is done with it; any thread may ask.
    """

    def __init__(
        self,
        sampled: tuple[ScheduledRow, ...],
        drawn: Drawn | None,
        foretold: ForetoldValues | None = None,
    ) -> None:
        """Start the copies on the current stream."""
        self.layers: Sequence[LayersWritten] = ()
        self._foretold = foretold
        if foretold is not None:
            self._foretold_values, self._foretold_ids = _to_host(foretold.values), _to_host(foretold.ids)
        self._request_ids = [row.request.request_id for row in sampled]
        self._wishes = [row.request.sampling.logprobs for row in sampled]
        self._tokens = self._values = self._ids = None
        if drawn is not None:
            self._tokens = _to_host(drawn.tokens)
            if drawn.values is not None and drawn.ids is not None:
                self._values, self._ids = _to_host(drawn.values), _to_host(drawn.ids)
        self._done = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._done.record()
        self.is_over: Callable[[], bool] = self._done.query

    def wait(self) -> StepResult:
        """Wait for the device. A row whose logits hold NaN or infinity has an error for a token."""
        self._done.synchronize()
        prompts = (
            {}
            if self._foretold is None
            else self._foretold.by_request(self._foretold_values, self._foretold_ids)
        )
        if self._tokens is None:
            return StepResult({}, prompts)
        sampled: dict[str, Draw] = {}
        for index, (request_id, token_id) in enumerate(
            zip(self._request_ids, self._tokens.tolist(), strict=True)
        ):
            if token_id < 0:
                sampled[request_id] = SamplingError(NOT_FINITE)
            else:
                sampled[request_id] = SampledToken(token_id, self._logprobs(index))
        return StepResult(sampled, prompts)

    def _logprobs(self, index: int) -> Logprobs | None:
        wish = self._wishes[index]
        if wish is None or self._values is None or self._ids is None:
            return None
        values: list[float] = self._values[index, : wish + 1].tolist()
        ids: list[int] = self._ids[index, 1 : wish + 1].tolist()
        return Logprobs(values[0], tuple(ids), tuple(values[1:]))


def _to_host(tensor: torch.Tensor) -> torch.Tensor:
    pinned = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return pinned.copy_(tensor, non_blocking=True)
