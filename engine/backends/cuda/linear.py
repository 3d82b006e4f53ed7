"""Products of activations and weights."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class CudaLinear:
    """A weight [N, K] and its bias [N]."""

    weight: torch.Tensor
    bias: torch.Tensor | None

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
        if self.bias is None:
            return torch.mm(x, self.weight.t())
        return torch.addmm(self.bias, x, self.weight.t())

    def forward_float32(self, x: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        """x [T, K] -> out float32[T, N], sums not rounded; no bias."""
        assert self.bias is None
        return torch.mm(x, self.weight.t(), out_dtype=torch.float32, out=out)
