"""Shapes of models that are served with random weights, where no weights can be had."""

from __future__ import annotations

import json
from pathlib import Path

from engine.models.load import RANDOM_WEIGHTS

_LLAMA: dict[str, object] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_act": "silu",
    "rms_norm_eps": 1e-05,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "mlp_bias": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
}

SHAPES: dict[str, dict[str, object]] = {
    "llama-3.1-8b": _LLAMA
    | {
        "vocab_size": 128256,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "max_position_embeddings": 131072,
        "rope_theta": 500000.0,
    },
    "tiny": _LLAMA
    | {
        "vocab_size": 2048,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 8192,
        "rope_theta": 10000.0,
    },
}


def write_shape(name: str, into: Path) -> Path:
    """Write a model directory of that shape; its weights are drawn where it is served."""
    into.mkdir(parents=True, exist_ok=True)
    (into / "config.json").write_text(json.dumps(SHAPES[name], indent=1))
    (into / RANDOM_WEIGHTS).write_text(json.dumps({"seed": 0}))
    return into
