"""Products of activations and weights, in one of two modes.

Fast       linear_rows where it beats cuBLAS, cuBLAS with whatever algorithm it likes elsewhere.
Invariant  a row's bits do not depend on how many rows there are: cuBLASLt without split-K, and only for
           numbers of rows that gave the bits of REFERENCE_ROWS when this process tried; others are padded.
           (Without split-K cuBLASLt mostly adds up in the order of k whatever tile it takes, as vLLM found
           too, but on an H200 1 row of 1024 x 3072 differed.)
"""

from __future__ import annotations

import enum
import functools
from dataclasses import dataclass

import torch

from engine.backends.cuda.linear_rows import linear_rows, rows_that_pay

REFERENCE_ROWS = 256
_TRIED_ROWS = (1, 2, 4, 8, 16, 32, 48, 64, 96, 128, 192, 512, 768, 1024, 1280, 1536, 1792, 2048)


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
        sizes: numbers of rows that may be multiplied, growing; empty: any.
    """

    weight: torch.Tensor
    bias: torch.Tensor | None
    few_rows: int
    sizes: tuple[int, ...]

    @classmethod
    def create(cls, weight: torch.Tensor, bias: torch.Tensor | None, mode: Mode) -> CudaLinear:
        """Choose how it is multiplied."""
        out_features, in_features = weight.shape
        if mode is Mode.FAST:
            return cls(weight, bias, rows_that_pay(out_features, in_features), ())
        if weight.is_meta:
            return cls(weight, bias, 0, (REFERENCE_ROWS,))
        return cls(weight, bias, 0, proven_sizes(out_features, in_features, weight.dtype, bias is not None))

    @property
    def in_features(self) -> int:
        """K."""
        return self.weight.shape[1]

    @property
    def out_features(self) -> int:
        """N."""
        return self.weight.shape[0]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x [T, K] -> new [T, N]."""
        rows = x.shape[0]
        if rows <= self.few_rows:
            return linear_rows(x, self.weight, self.bias)
        if not self.sizes or rows in self.sizes:
            return _product(x, self.weight, self.bias)
        parts = [_product(part, self.weight, self.bias) for part in cut(x, self.sizes)]
        return (parts[0] if len(parts) == 1 else torch.cat(parts))[:rows]

    def forward_float32(self, x: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        """x [T, K] -> out float32[T, N], sums not rounded; no bias."""
        assert self.bias is None
        rows = x.shape[0]
        if rows <= self.few_rows:
            return linear_rows(x, self.weight, None, out)
        if not self.sizes:
            result: torch.Tensor = torch.mm(x, self.weight.t(), out_dtype=torch.float32, out=out)
            return result
        # Tried or not, these are always multiplied by the same number of rows.
        for index, part in enumerate(cut(x, (REFERENCE_ROWS,))):
            target = out[index * REFERENCE_ROWS : (index + 1) * REFERENCE_ROWS]
            target.copy_(torch.mm(part, self.weight.t(), out_dtype=torch.float32)[: len(target)])
        return out


def _product(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    return torch.mm(x, weight.t()) if bias is None else torch.addmm(bias, x, weight.t())


def cut(x: torch.Tensor, sizes: tuple[int, ...]) -> list[torch.Tensor]:
    """x in parts of the largest size, then one of the smallest that holds the rest, zeros after its own."""
    parts = list(torch.split(x, sizes[-1]))
    rest = parts[-1].shape[0]
    missing = next(size for size in sizes if size >= rest) - rest
    parts[-1] = torch.nn.functional.pad(parts[-1], (0, 0, 0, missing))
    return parts


@functools.cache
def proven_sizes(out_features: int, in_features: int, dtype: torch.dtype, has_bias: bool) -> tuple[int, ...]:
    """Numbers of rows for which cuBLAS gives every row the bits that it has among REFERENCE_ROWS.

    Random numbers tell: another order of additions shows in some of the thousands of sums.
    """
    generator = torch.Generator("cuda").manual_seed(1)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, device="cuda").to(dtype)

    weight, bias = random(out_features, in_features), random(out_features) if has_bias else None
    x = random(max(_TRIED_ROWS), in_features)
    wanted = torch.cat([_product(part, weight, bias) for part in cut(x, (REFERENCE_ROWS,))])
    proven = [rows for rows in _TRIED_ROWS if torch.equal(_product(x[:rows], weight, bias), wanted[:rows])]
    return tuple(sorted([*proven, REFERENCE_ROWS]))
