"""The feed-forward part of a layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch

from engine.backends.base import Activation, Backend, PackedLinear


class FeedForward(Protocol):
    """What a layer runs after its attention: dense, or a mixture of experts."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x [T, E] -> new [T, E]."""
        ...


@dataclass(frozen=True, slots=True)
class GatedMlp:
    """down(activation(gate(x)) * up(x)). Source: Shazeer 2020."""

    backend: Backend
    gate_up: PackedLinear
    down: PackedLinear
    activation: Activation

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x [T, E] -> new [T, E]."""
        gate_up = self.backend.linear(x, self.gate_up)
        return self.backend.linear(self.backend.gated_activation(gate_up, self.activation), self.down)
