"""Tries algorithms of products on the device: bits against a reference, and time with cold weights."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from engine.backends.cuda import driver
from engine.backends.cuda.cublaslt import Algorithm, ProductShape, product
from engine.backends.cuda.product_choice import REFERENCE_ROWS

_REPEATS, _ROUNDS = 5, 2
_MOST_COPIES = 64
_BUSY_CYCLES = 300_000  # some 150 us, in which the host enqueues what is timed


def operands(
    rows: int,
    out_features: int,
    in_features: int,
    dtype: torch.dtype,
    generator: torch.Generator,
    *,
    cancelling: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """x [rows, K], weight [N, K] and bias [N]; if cancelling, such that tell orders of additions apart.

    Random numbers hardly do: rounded to 16 bits, one sum in thousands shows it. So every sum is made to be
    0: half of its terms are the negatives of the others, elsewhere in k. What comes out is rounding alone,
    and another in almost every sum for every order. The bias is 0 then, so random operands tell the rest:
    what is rounded before the bias is added.
    """

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, device=generator.device, dtype=dtype)

    x, weight = random(rows, in_features), random(out_features, in_features)
    if not cancelling:
        return x, weight, random(out_features)
    half = in_features // 2
    order = torch.randperm(half, generator=generator, device=generator.device)
    x[:, half : 2 * half] = -x[:, order]
    weight[:, half : 2 * half] = weight[:, order]
    x[:, 2 * half :] = 0
    return x, weight, torch.zeros(out_features, dtype=dtype, device=generator.device)


class DeviceTrial:
    """One shape, on torch's current device and stream; takes memory for as long as it lives.

    Attributes:
        product: what is tried.
    """

    def __init__(
        self, shape: ProductShape, device: torch.device, rows: int, workspace_bytes: int, l2_bytes: int
    ) -> None:
        """`rows`: most that are tried."""
        self._shape, self._rows, self._l2_bytes = shape, rows, l2_bytes
        self._bias = torch.empty(shape.out_features, dtype=shape.dtype, device=device)
        self.product = product(shape, self._bias.data_ptr() if shape.has_bias else 0, device.index or 0)
        self._generator = torch.Generator(device).manual_seed(1)
        self._workspace = torch.empty(workspace_bytes, dtype=torch.uint8, device=device)
        self._out = torch.empty(rows, shape.out_features, dtype=shape.out_dtype, device=device)
        self._timed: _Operands | None = None

    def same(self, reference: Algorithm, algorithms: Mapping[int, Sequence[Algorithm]]) -> list[list[bool]]:
        """See product_choice.Trial."""
        pairs = [(rows, algorithm) for rows, found in algorithms.items() for algorithm in found]
        fits = torch.ones(len(pairs), dtype=torch.bool, device=self._out.device)
        for cancelling in (True, False):
            tried = self._operands(cancelling)
            wanted = torch.empty_like(self._out)
            for start in range(0, self._rows, REFERENCE_ROWS):
                part = slice(start, min(start + REFERENCE_ROWS, self._rows))
                self._launch(reference, tried.x[part], tried.weight, wanted[part])
            for index, (rows, algorithm) in enumerate(pairs):
                out = self._out[:rows]
                self._launch(algorithm, tried.x[:rows], tried.weight, out)
                fits[index] &= (bits(out) == bits(wanted[:rows])).all()
        answers = iter(fits.tolist())
        return [[next(answers) for _ in found] for found in algorithms.values()]

    def microseconds(self, rows: int, algorithms: Sequence[Algorithm]) -> list[float]:
        """See product_choice.Trial."""
        tried = self._timed = self._timed or self._operands(cancelling=False)
        weights = tried.cold_weights(2 * self._l2_bytes)
        x, out = tried.x[:rows], self._out[:rows]
        marks = []
        for algorithm in algorithms:
            for _ in range(_ROUNDS):
                start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
                torch.cuda._sleep(_BUSY_CYCLES)  # type: ignore[no-untyped-call]
                self._launch(algorithm, x, next(weights), out)
                start.record()
                for _ in range(_REPEATS):
                    self._launch(algorithm, x, next(weights), out)
                end.record()
                marks.append((start, end))
        torch.cuda.synchronize()
        times = [start.elapsed_time(end) * 1e3 / _REPEATS for start, end in marks]
        return [min(times[at : at + _ROUNDS]) for at in range(0, len(times), _ROUNDS)]

    def _operands(self, cancelling: bool) -> _Operands:
        shape = self._shape
        x, weight, bias = operands(
            self._rows,
            shape.out_features,
            shape.in_features,
            shape.dtype,
            self._generator,
            cancelling=cancelling,
        )
        self._bias.copy_(bias)
        return _Operands(x, weight)

    def _launch(self, algorithm: Algorithm, x: torch.Tensor, weight: torch.Tensor, out: torch.Tensor) -> None:
        self.product.launch(
            algorithm,
            x.shape[0],
            x.data_ptr(),
            weight.data_ptr(),
            out.data_ptr(),
            self._workspace.data_ptr(),
            driver.current_stream(),
        )


@dataclass
class _Operands:
    """What is multiplied."""

    x: torch.Tensor
    weight: torch.Tensor
    _turns: Iterator[torch.Tensor] | None = None

    def cold_weights(self, num_bytes: int) -> Iterator[torch.Tensor]:
        """The weight and copies of it in turns; `num_bytes` pass before one comes again."""
        if self._turns is None:
            count = -(-num_bytes // (self.weight.numel() * self.weight.element_size()))
            copies = [self.weight.clone() for _ in range(min(count, _MOST_COPIES) - 1)]
            self._turns = itertools.cycle([self.weight, *copies])
        return self._turns


def bits(numbers: torch.Tensor) -> torch.Tensor:
    """The same memory as integers: NaN equals itself, and -0 is not 0."""
    return numbers.view(torch.int16 if numbers.element_size() == 2 else torch.int32)
