"""Products: weights packed once by oneDNN, which picks AVX-512 on any maker's CPU.

MKL's packed products, the other candidate, fall back to AVX2 on AMD and then take twice as long;
docs/kernels/cpu_backend.md has the figures.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

# Packed for this many rows, a weight is laid out in the one form that is fastest from 1 row to 512.
_PACK_ROWS = 512

_HAS_ONEDNN = bool(torch._C._has_mkldnn)


@dataclass(frozen=True, slots=True)
class CpuLinear:
    """A weight [N, K] with its bias [N], packed where oneDNN is there."""

    weight: torch.Tensor
    bias: torch.Tensor | None
    in_features: int
    out_features: int

    @classmethod
    def pack(cls, weight: torch.Tensor, bias: torch.Tensor | None) -> CpuLinear:
        """Copies both, so that a mapped file may go away."""
        out_features, in_features = weight.shape
        if _HAS_ONEDNN:
            held = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), _PACK_ROWS)
        else:
            held = weight.clone()
        return cls(held, None if bias is None else bias.clone(), in_features, out_features)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x [T, K] -> new [T, N]."""
        return product(x, self.weight, self.bias)


def product(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """x [T, K] by a weight [N, K], packed or any strided view -> new [T, N]."""
    if not _HAS_ONEDNN:
        return F.linear(x, weight, bias)
    result: torch.Tensor = torch.ops.mkldnn._linear_pointwise.default(x, weight, bias, "none", [], "")
    return result
