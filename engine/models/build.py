"""Builds the transformer that an architecture describes, from a source of weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from engine.backends.base import Backend, PackedLinear, QKNorm, RopeTable
from engine.models.architecture import Architecture
from engine.models.attention import Attention
from engine.models.checkpoint import EMBEDDING, FINAL_NORM, LM_HEAD, expected_shapes, layer_prefix
from engine.models.mlp import GatedMlp
from engine.models.rope import rope_table
from engine.models.transformer import DecoderLayer, RmsNorm, Transformer
from engine.weights.source import TensorSource, check_shapes


def build_transformer(
    architecture: Architecture, source: TensorSource, backend: Backend, max_positions: int
) -> Transformer:
    """Load and pack all weights.

    Args:
        max_positions: length of the rotary table; no request may be longer.
    Raises:
        ModelLoadError: a tensor is missing, has another shape, or cannot be read.
    """
    check_shapes(source, expected_shapes(architecture))
    builder = _Builder(architecture, source, backend, rope_table(architecture.rope, max_positions))
    return builder.transformer()


class _Builder:
    def __init__(
        self, architecture: Architecture, source: TensorSource, backend: Backend, rope: RopeTable
    ) -> None:
        self._architecture = architecture
        self._source = source
        self._backend = backend
        self._rope = RopeTable(backend.upload(rope.cos_sin, torch.float32), rope.rotary_dim)

    def transformer(self) -> Transformer:
        tied = self._architecture.tied_embeddings
        embedding = self._weight(EMBEDDING)
        return Transformer(
            backend=self._backend,
            embedding=embedding,
            layers=tuple(self._layer(layer) for layer in range(self._architecture.num_layers)),
            final_norm=self._norm(FINAL_NORM),
            lm_head=(
                self._backend.tie_linear(embedding)
                if tied
                else self._backend.pack_linear([self._tensor(LM_HEAD)], None)
            ),
        )

    def _layer(self, layer: int) -> DecoderLayer:
        prefix = layer_prefix(layer)
        architecture = self._architecture
        attention = Attention(
            backend=self._backend,
            shape=architecture.attention_shape(layer),
            rope=self._rope,
            norm=self._qk_norm(prefix),
            qkv=self._linear(
                [prefix + f"self_attn.{part}_proj" for part in ("q", "k", "v")], architecture.qkv_bias
            ),
            output=self._linear([prefix + "self_attn.o_proj"], architecture.output_bias),
            layer=layer,
        )
        mlp = GatedMlp(
            backend=self._backend,
            gate_up=self._linear([prefix + "mlp.gate_proj", prefix + "mlp.up_proj"], architecture.mlp_bias),
            down=self._linear([prefix + "mlp.down_proj"], architecture.mlp_bias),
            activation=architecture.activation,
        )
        return DecoderLayer(
            input_norm=self._norm(prefix + "input_layernorm.weight"),
            attention=attention,
            post_attention_norm=self._norm(prefix + "post_attention_layernorm.weight"),
            feed_forward=mlp,
        )

    def _linear(self, names: Sequence[str], has_bias: bool) -> PackedLinear:
        """One product for several that share their input."""
        weights = [self._tensor(f"{name}.weight") for name in names]
        biases = [self._tensor(f"{name}.bias") for name in names] if has_bias else None
        return self._backend.pack_linear(weights, biases)

    def _tensor(self, name: str) -> torch.Tensor:
        return self._source.tensor(name, self._backend.device)

    def _weight(self, name: str) -> torch.Tensor:
        return self._backend.load_weight(self._tensor(name))

    def _norm(self, name: str) -> RmsNorm:
        return RmsNorm(self._backend, self._weight(name), self._architecture.norm_eps)

    def _qk_norm(self, prefix: str) -> QKNorm | None:
        if not self._architecture.qk_norm:
            return None
        return QKNorm(
            query=self._weight(prefix + "self_attn.q_norm.weight"),
            key=self._weight(prefix + "self_attn.k_norm.weight"),
            eps=self._architecture.norm_eps,
        )
