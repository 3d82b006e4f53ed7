"""Products of activations and weights: linear_rows for few rows where that pays, cuBLASLt for the rest.

cuBLASLt's part gives a row the same bits among any number of rows (product_choice.py), and so does
linear_rows, but not the same ones: in the batch-invariant mode it is left out.
"""

from __future__ import annotations

import enum
import functools
from dataclasses import dataclass

import torch

from engine.backends.cuda.linear_rows import linear_rows, rows_that_pay
from engine.backends.cuda.products import Multiplier


class Mode(enum.Enum):
    """What a backend promises."""

    FAST = "fast"
    INVARIANT = "invariant"
    """A token's bits depend on its request alone."""


@dataclass(frozen=True)
class CudaLinear:
    """A weight [N, K] and its bias [N].

    Attributes:
        few_rows: most rows that linear_rows multiplies.
    """

    weight: torch.Tensor
    bias: torch.Tensor | None
    few_rows: int

    @classmethod
    def create(cls, weight: torch.Tensor, bias: torch.Tensor | None, mode: Mode) -> CudaLinear:
        """Choose how it is multiplied."""
        out_features, in_features = weight.shape
        return cls(weight, bias, 0 if mode is Mode.INVARIANT else rows_that_pay(out_features, in_features))

    @property
    def in_features(self) -> int:
        """K."""
        return self.weight.shape[1]

    @property
    def out_features(self) -> int:
        """N."""
        return self.weight.shape[0]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x [T, K] -> new [T, N]. The first call for a shape of weight may measure: not while capturing."""
        rows = x.shape[0]
        if rows <= self.few_rows:
            return linear_rows(x, self.weight, self.bias)
        out = x.new_empty((rows, self.out_features))
        self._multiply(x, out)
        return out

    def forward_float32(self, x: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        """x [T, K] -> out float32[T, N], sums not rounded; no bias."""
        assert self.bias is None
        if x.shape[0] <= self.few_rows:
            return linear_rows(x, self.weight, None, out)
        self._multiply_float32(x, out)
        return out

    @functools.cached_property
    def _multiply(self) -> Multiplier:
        return Multiplier(self.weight, self.bias, self.weight.dtype)

    @functools.cached_property
    def _multiply_float32(self) -> Multiplier:
        return Multiplier(self.weight, None, torch.float32)
