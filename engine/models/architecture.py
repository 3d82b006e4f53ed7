"""An architecture, described: every part that the transformer family chooses between."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from engine.backends.base import Activation, AttentionShape


class RopeKind(enum.Enum):
    """How rotary frequencies come from theta."""

    DEFAULT = "default"
    LINEAR = "linear"
    DYNAMIC = "dynamic"
    YARN = "yarn"
    LLAMA3 = "llama3"
    FACTORS = "factors"


@dataclass(frozen=True, slots=True)
class RopeParameters:
    """Parameters of the rotary embedding; those of other kinds are ignored.

    Attributes:
        kind: which formula.
        theta: base.
        rotary_dim: leading entries of a head that turn.
        factor: stretch (linear, yarn, llama3).
        original_max_positions: context before the stretch (yarn, llama3).
        low_freq_factor, high_freq_factor: llama3.
        beta_fast, beta_slow: yarn.
        attention_factor: yarn; factor on cosines and sines; None: from the stretch.
        mscale, mscale_all_dim: yarn as DeepSeek writes it; 0: unused.
        truncate: yarn; round the correction range to whole dimensions.
        freq_divisors: factors; one a frequency (GGUF's rope_freqs).
    """

    kind: RopeKind
    theta: float
    rotary_dim: int
    factor: float = 1.0
    original_max_positions: int = 0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None
    mscale: float = 0.0
    mscale_all_dim: float = 0.0
    truncate: bool = True
    freq_divisors: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Architecture:
    """One model of the family.

    Attributes:
        name: as Hugging Face's `architectures` writes it.
        num_layers: L.
        hidden_size: E.
        intermediate_size: F of the feed-forward part.
        vocab_size: V.
        num_heads, num_kv_heads, head_dim: H, H_kv, D.
        max_positions: longest context that the weights were made for.
        rope: the rotary embedding.
        norm_eps: of every RMS norm.
        activation: of the gated feed-forward part.
        qkv_bias, output_bias, mlp_bias: which products have a bias.
        qk_norm: RMS norm of each query and key head (Qwen3).
        tied_embeddings: the logits use the embedding table.
        sliding_windows: one a layer; None: full attention.
        eos_token_ids: tokens that end an answer.
    """

    name: str
    num_layers: int
    hidden_size: int
    intermediate_size: int
    vocab_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_positions: int
    rope: RopeParameters
    norm_eps: float
    activation: Activation
    qkv_bias: bool
    output_bias: bool
    mlp_bias: bool
    qk_norm: bool
    tied_embeddings: bool
    sliding_windows: tuple[int | None, ...]
    eos_token_ids: frozenset[int]

    def attention_shape(self, layer: int) -> AttentionShape:
        """Constants of the attention of one layer."""
        return AttentionShape(
            num_heads=self.num_heads,
            num_kv_heads=self.num_kv_heads,
            head_dim=self.head_dim,
            scale=self.head_dim**-0.5,
            sliding_window=self.sliding_windows[layer],
        )
