"""Names and shapes of the tensors that an architecture needs."""

from __future__ import annotations

from engine.models.architecture import Architecture
from engine.weights.source import Shape

EMBEDDING = "model.embed_tokens.weight"
FINAL_NORM = "model.norm.weight"
LM_HEAD = "lm_head.weight"


def layer_prefix(layer: int) -> str:
    """What the names of a layer's tensors begin with."""
    return f"model.layers.{layer}."


def expected_shapes(architecture: Architecture) -> dict[str, Shape]:
    """Every tensor by its Hugging Face name."""
    hidden = architecture.hidden_size
    shapes: dict[str, Shape] = {
        EMBEDDING: (architecture.vocab_size, hidden),
        FINAL_NORM: (hidden,),
    }
    if not architecture.tied_embeddings:
        shapes[LM_HEAD] = (architecture.vocab_size, hidden)
    for layer in range(architecture.num_layers):
        for name, shape in _layer_shapes(architecture).items():
            shapes[layer_prefix(layer) + name] = shape
    return shapes


def _layer_shapes(architecture: Architecture) -> dict[str, Shape]:
    hidden, inner = architecture.hidden_size, architecture.intermediate_size
    queries = architecture.num_heads * architecture.head_dim
    keys = architecture.num_kv_heads * architecture.head_dim
    linears = {
        "self_attn.q_proj": (queries, hidden, architecture.qkv_bias),
        "self_attn.k_proj": (keys, hidden, architecture.qkv_bias),
        "self_attn.v_proj": (keys, hidden, architecture.qkv_bias),
        "self_attn.o_proj": (hidden, queries, architecture.output_bias),
        "mlp.gate_proj": (inner, hidden, architecture.mlp_bias),
        "mlp.up_proj": (inner, hidden, architecture.mlp_bias),
        "mlp.down_proj": (hidden, inner, architecture.mlp_bias),
    }
    shapes: dict[str, Shape] = {
        "input_layernorm.weight": (hidden,),
        "post_attention_layernorm.weight": (hidden,),
    }
    for name, (rows, columns, has_bias) in linears.items():
        shapes[f"{name}.weight"] = (rows, columns)
        if has_bias:
            shapes[f"{name}.bias"] = (rows,)
    if architecture.qk_norm:
        shapes["self_attn.q_norm.weight"] = (architecture.head_dim,)
        shapes["self_attn.k_norm.weight"] = (architecture.head_dim,)
    return shapes
