"""The transformer of the whole family, composed of parts.

token_ids ─► embedding ─► [ norm ─► attention ─► + ─► norm ─► feed-forward ─► + ] × L ─► norm ─► logits
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from engine.backends.base import Backend, KVPool, PackedLinear, Step
from engine.models.attention import Attention
from engine.models.mlp import FeedForward


@dataclass(frozen=True, slots=True)
class RmsNorm:
    """Weights [E] and epsilon of one norm."""

    backend: Backend
    weight: torch.Tensor
    eps: float

    def forward(self, x: torch.Tensor, residual: torch.Tensor | None = None) -> torch.Tensor:
        """Norm of x, or of residual + x, which then also becomes the residual."""
        return self.backend.rms_norm(x, self.weight, self.eps, residual)


@dataclass(frozen=True, slots=True)
class DecoderLayer:
    """One layer, norms before its parts."""

    input_norm: RmsNorm
    attention: Attention
    post_attention_norm: RmsNorm
    feed_forward: FeedForward


@dataclass(frozen=True, slots=True)
class Transformer:
    """A model on a backend.

    Attributes:
        backend: where it runs.
        embedding: table [V, E].
        layers: L of them.
        final_norm: before the logits.
        lm_head: logits product.
    """

    backend: Backend
    embedding: torch.Tensor
    layers: tuple[DecoderLayer, ...]
    final_norm: RmsNorm
    lm_head: PackedLinear

    def forward(
        self, token_ids: torch.Tensor, step: Step, pool: KVPool, sample_rows: torch.Tensor
    ) -> torch.Tensor:
        """Run one step. Modifies the pool at the step's slots.

        Args:
            token_ids: int32[T].
            sample_rows: int32[R], tokens (0 .. T-1, rising) whose logits are wanted.
        Returns:
            logits float32[R, V], in the order of sample_rows; the next step may reuse the memory.
        """
        backend = self.backend
        residual = backend.embedding(token_ids, self.embedding)
        update: torch.Tensor | None = None
        for layer in self.layers:
            normed = _norm(layer.input_norm, residual, update)
            context = layer.attention.context(normed, step, pool)
            if layer is self.layers[-1]:
                # KV is stored: from here on only the rows whose logits are wanted matter.
                if len(sample_rows) == 0:
                    return torch.empty((0, self.lm_head.out_features), device=residual.device)
                if len(sample_rows) < step.num_tokens:
                    context = backend.take_rows(context, sample_rows)
                    residual = backend.take_rows(residual, sample_rows)
            attended = layer.attention.project(context)
            update = layer.feed_forward.forward(layer.post_attention_norm.forward(attended, residual))
        return backend.logits(_norm(self.final_norm, residual, update), self.lm_head)


def _norm(norm: RmsNorm, residual: torch.Tensor, update: torch.Tensor | None) -> torch.Tensor:
    return norm.forward(residual) if update is None else norm.forward(update, residual)
