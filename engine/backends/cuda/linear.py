"""Products of activations and weights, in one of two modes.

Fast       linear_rows where it beats cuBLAS, cuBLAS with whatever algorithm it likes elsewhere.
Invariant  a row's bits do not depend on how many rows there are: cuBLASLt without split-K, and only for
           numbers of rows that gave the bits of REFERENCE_ROWS when this process tried; others are padded.
           (Without split-K cuBLASLt mostly adds up in the order of k whatever tile it takes, as vLLM found
           too, but on an H200 1 row of 1024 x 3072 differed.) docs/kernels/batch_invariance.md says more.
"""

from __future__ import annotations

import enum
import functools
import logging
from dataclasses import dataclass

import torch

from engine.backends.cuda.linear_rows import linear_rows, rows_that_pay

_log = logging.getLogger(__name__)

REFERENCE_ROWS = 256
# Those of decode graphs (engine/runner/cuda/graphs.py), then such that few rows are ever missing.
_TRIED_ROWS = (
    *(1, 2, 4),
    *range(8, 64, 8),
    *range(64, 256, 16),
    *range(320, 1024, 64),
    *range(1024, 2049, 128),
)


class Mode(enum.Enum):
    """What products promise."""

    FAST = "fast"
    INVARIANT = "invariant"


def set_mode(mode: Mode) -> None:
    """Tell cuBLAS, for the whole process: sums stay float32, and are not split over k if invariant."""
    invariant = mode is Mode.INVARIANT
    torch.backends.cuda.preferred_blas_library("cublaslt" if invariant else "default")
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = (False, not invariant)
    torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = (False, not invariant)


@dataclass(frozen=True, slots=True)
class CudaLinear:
    """A weight [N, K] and its bias [N].

    Attributes:
        few_rows: most rows that linear_rows multiplies.
        invariant: only certain numbers of rows are multiplied.
    """

    weight: torch.Tensor
    bias: torch.Tensor | None
    few_rows: int
    invariant: bool

    @classmethod
    def create(cls, weight: torch.Tensor, bias: torch.Tensor | None, mode: Mode) -> CudaLinear:
        """Choose how it is multiplied."""
        out_features, in_features = weight.shape
        invariant = mode is Mode.INVARIANT
        return cls(weight, bias, 0 if invariant else rows_that_pay(out_features, in_features), invariant)

    @property
    def in_features(self) -> int:
        """K."""
        return self.weight.shape[1]

    @property
    def out_features(self) -> int:
        """N."""
        return self.weight.shape[0]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x [T, K] -> new [T, N]. In the invariant mode the first call tries sizes: not while capturing."""
        rows = x.shape[0]
        if rows <= self.few_rows:
            return linear_rows(x, self.weight, self.bias)
        if not self.invariant:
            return _product(x, self.weight, self.bias)
        sizes = proven_sizes(self.out_features, self.in_features, x.dtype, x.device, self.bias is not None)
        if rows in sizes:
            return _product(x, self.weight, self.bias)
        parts = [_product(part, self.weight, self.bias) for part in cut(x, sizes)]
        return (parts[0] if len(parts) == 1 else torch.cat(parts))[:rows]

    def forward_float32(self, x: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        """x [T, K] -> out float32[T, N], sums not rounded; no bias."""
        assert self.bias is None
        rows = x.shape[0]
        if rows <= self.few_rows:
            return linear_rows(x, self.weight, None, out)
        if not self.invariant:
            result: torch.Tensor = torch.mm(x, self.weight.t(), out_dtype=torch.float32, out=out)
            return result
        # Tried or not, these are always multiplied by the same number of rows.
        for index, part in enumerate(cut(x, (REFERENCE_ROWS,))):
            target = out[index * REFERENCE_ROWS : (index + 1) * REFERENCE_ROWS]
            if len(target) == REFERENCE_ROWS:
                torch.mm(part, self.weight.t(), out_dtype=torch.float32, out=target)
            else:
                target.copy_(torch.mm(part, self.weight.t(), out_dtype=torch.float32)[: len(target)])
        return out


def _product(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    return torch.mm(x, weight.t()) if bias is None else torch.addmm(bias, x, weight.t())


def cut(x: torch.Tensor, sizes: tuple[int, ...]) -> list[torch.Tensor]:
    """x in parts of the largest size, then one of the smallest that holds the rest, zeros after its own."""
    parts = list(torch.split(x, sizes[-1]))
    rest = parts[-1].shape[0]
    missing = next(size for size in sizes if size >= rest) - rest
    if missing:
        parts[-1] = torch.nn.functional.pad(parts[-1], (0, 0, 0, missing))
    return parts


@functools.cache
def proven_sizes(
    out_features: int, in_features: int, dtype: torch.dtype, device: torch.device, has_bias: bool
) -> tuple[int, ...]:
    """Numbers of rows for which the product gives every row the bits that it has among REFERENCE_ROWS."""
    generator = torch.Generator(device).manual_seed(1)
    proven = set(_TRIED_ROWS)
    for cancelling in (True, False):
        x, weight, shift = _operands(out_features, in_features, dtype, generator, cancelling)
        bias = shift if has_bias else None
        wanted = torch.cat([_product(part, weight, bias) for part in cut(x, (REFERENCE_ROWS,))])
        proven = {n for n in proven if torch.equal(_product(x[:n], weight, bias), wanted[:n])}
    other = sorted(set(_TRIED_ROWS) - proven)
    if other:
        _log.info("weight %d x %d: %s rows give other bits and are padded", out_features, in_features, other)
    return tuple(sorted({*proven, REFERENCE_ROWS}))


def _operands(
    out_features: int, in_features: int, dtype: torch.dtype, generator: torch.Generator, cancelling: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """x [most rows, K], weight [N, K] and bias [N] that tell orders of additions apart.

    Random numbers hardly do: rounded to 16 bits, one sum in thousands shows it. So every sum is made to be
    0: half of its terms are the negatives of the others, elsewhere in k. What comes out is rounding alone,
    and another in almost every sum for every order. The bias is 0 then, so random operands come second:
    they tell what is rounded before the bias is added.
    """

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, device=generator.device).to(dtype)

    x, weight = random(max(_TRIED_ROWS), in_features), random(out_features, in_features)
    if not cancelling:
        return x, weight, random(out_features)
    half = in_features // 2
    order = torch.randperm(half, generator=generator, device=generator.device)
    x[:, half : 2 * half] = -x[:, order]
    weight[:, half : 2 * half] = weight[:, order]
    x[:, 2 * half :] = 0
    return x, weight, torch.zeros(out_features, dtype=dtype, device=generator.device)
