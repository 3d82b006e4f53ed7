"""Describes the architecture in a GGUF file."""

from __future__ import annotations

import math

from engine.backends.base import Activation
from engine.errors import UnsupportedArchitectureError
from engine.models.architecture import Architecture, RopeKind, RopeParameters
from engine.models.config_fields import ConfigFields
from engine.weights.gguf_file import GgufFile

# Names that Hugging Face gives them. Mistral's GGUF files call themselves llama.
_NAMES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}

# Only these files hold query and key rows in interleaved order.
_INTERLEAVED = ("llama",)

_ROPE_FACTORS = "rope_freqs.weight"


def is_interleaved(file: GgufFile) -> bool:
    """Whether query and key rows are in the order of interleaved rotation."""
    return file.fields.get("general.architecture") in _INTERLEAVED


def gguf_architecture(file: GgufFile) -> Architecture:
    """Read the metadata.

    Raises:
        ModelLoadError: a field is missing or out of range.
        UnsupportedArchitectureError: the architecture is not one of those supported.
    """
    every = ConfigFields(file.fields, str(file.path))
    kind = every.string("general.architecture", "(none named)")
    if kind not in _NAMES:
        raise UnsupportedArchitectureError(
            f"{file.path}: architecture {kind} is not supported; supported in GGUF: {', '.join(_NAMES)}"
        )
    prefix = f"{kind}."
    fields = ConfigFields(
        {name.removeprefix(prefix): value for name, value in file.fields.items() if name.startswith(prefix)},
        f"{file.path}: {kind}",
    )
    if fields.optional_integer("expert_count"):
        fields.fail("expert_count", "mixtures of experts are not supported")
    hidden_size = fields.integer("embedding_length")
    num_heads = fields.integer("attention.head_count")
    num_kv_heads = fields.integer("attention.head_count_kv", num_heads)
    fields.check(
        num_kv_heads > 0 and num_heads % num_kv_heads == 0,
        "attention.head_count_kv",
        f"{num_kv_heads} does not divide {num_heads} heads",
    )
    head_dim = fields.integer("attention.key_length", hidden_size // num_heads)
    num_layers = fields.integer("block_count")
    max_positions = fields.integer("context_length")
    table_shape = file.shape("token_embd.weight")
    return Architecture(
        name=_NAMES[kind],
        num_layers=num_layers,
        hidden_size=hidden_size,
        intermediate_size=fields.integer("feed_forward_length"),
        vocab_size=table_shape[0] if table_shape else fields.integer("vocab_size"),
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        max_positions=max_positions,
        rope=_rope(file, fields, head_dim, max_positions),
        norm_eps=fields.number("attention.layer_norm_rms_epsilon", 1e-6),
        activation=Activation.SILU,
        qkv_bias=file.shape("blk.0.attn_q.bias") is not None,
        output_bias=file.shape("blk.0.attn_output.bias") is not None,
        mlp_bias=file.shape("blk.0.ffn_gate.bias") is not None,
        qk_norm=file.shape("blk.0.attn_q_norm.weight") is not None,
        tied_embeddings=file.shape("output.weight") is None,
        sliding_windows=(fields.optional_integer("attention.sliding_window"),) * num_layers,
        eos_token_ids=frozenset(every.integers("tokenizer.ggml.eos_token_id")),
    )


def _rope(file: GgufFile, fields: ConfigFields, head_dim: int, max_positions: int) -> RopeParameters:
    divisors: tuple[float, ...] = ()
    scaling = fields.string("rope.scaling.type", "none")
    kinds = {"none": RopeKind.DEFAULT, "linear": RopeKind.LINEAR, "yarn": RopeKind.YARN}
    fields.check(scaling in kinds, "rope.scaling.type", f"{scaling!r} is not one of {', '.join(kinds)}")
    kind = kinds[scaling]
    if file.shape(_ROPE_FACTORS) is not None:
        kind = RopeKind.FACTORS
        divisors = tuple(file.tensor(_ROPE_FACTORS).tolist())
    factor = fields.number("rope.scaling.factor", 1.0)
    stretch = fields.number("rope.scaling.attn_factor", 1.0)
    attention_factor = (1.0 + 0.1 * math.log(factor)) * stretch if factor > 1 else stretch
    return RopeParameters(
        kind=kind,
        theta=fields.number("rope.freq_base", 10000.0),
        rotary_dim=fields.integer("rope.dimension_count", head_dim),
        factor=factor,
        original_max_positions=fields.integer("rope.scaling.original_context_length", max_positions),
        beta_fast=fields.number("rope.scaling.yarn_beta_fast", 32.0),
        beta_slow=fields.number("rope.scaling.yarn_beta_slow", 1.0),
        attention_factor=attention_factor,
        freq_divisors=divisors,
    )
