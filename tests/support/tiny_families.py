"""A tiny random Transformers model of each supported family, saved as users have them."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    MistralConfig,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)

COMMON = {
    "vocab_size": 97,
    "hidden_size": 144,
    "intermediate_size": 112,
    "num_hidden_layers": 3,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
HEADS_4_2 = {"num_attention_heads": 4, "num_key_value_heads": 2}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 1e4,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 128}

FAMILIES: dict[str, PretrainedConfig] = {
    "llama2": LlamaConfig(**COMMON, num_attention_heads=4, num_key_value_heads=4),
    "llama3": LlamaConfig(**COMMON, **HEADS_4_2, rope_parameters=LLAMA3),
    "llama-bias-linear": LlamaConfig(
        **COMMON,
        num_attention_heads=8,
        num_key_value_heads=1,
        attention_bias=True,
        mlp_bias=True,
        rope_parameters={"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0},
    ),
    "smollm2": LlamaConfig(**COMMON, num_attention_heads=9, num_key_value_heads=3, tie_word_embeddings=True),
    "mistral-window": MistralConfig(**COMMON, **HEADS_4_2, head_dim=24, sliding_window=37),
    "mistral-full": MistralConfig(**COMMON, **HEADS_4_2, sliding_window=None),
    "qwen2": Qwen2Config(**COMMON, **HEADS_4_2, tie_word_embeddings=True),
    "qwen2-window": Qwen2Config(
        **COMMON, **HEADS_4_2, use_sliding_window=True, sliding_window=21, max_window_layers=1
    ),
    "qwen3": Qwen3Config(**COMMON, **HEADS_4_2, head_dim=32),
    "qwen3-yarn": Qwen3Config(**COMMON, num_attention_heads=6, num_key_value_heads=2, rope_parameters=YARN),
}


def wide_heads(config: PretrainedConfig, head_dim: int) -> PretrainedConfig:
    """The same family with heads, and rows of weights, of sizes that the CUDA kernels take."""
    wide = copy.deepcopy(config)
    wide.head_dim = head_dim
    wide.hidden_size = head_dim * wide.num_attention_heads
    return wide


def create_family(
    name: str, directory: Path, max_shard_size: str = "1GB", head_dim: int | None = None
) -> PreTrainedModel:
    """Save a random model of a family into `directory`; return it in float32, in eager attention.

    With `head_dim`, as wide_heads makes it.
    """
    torch.manual_seed(len(name))
    config = FAMILIES[name] if head_dim is None else wide_heads(FAMILIES[name], head_dim)
    model = AutoModelForCausalLM.from_config(copy.deepcopy(config), attn_implementation="eager")
    for parameter_name, parameter in model.named_parameters():
        # Larger than the default initialisation, norms and biases too: otherwise a missing one hides.
        if parameter.ndim == 1:
            torch.nn.init.normal_(parameter, mean=1.0 if "norm" in parameter_name else 0.0, std=0.3)
        else:
            torch.nn.init.normal_(parameter, std=0.12)
    model.eval().save_pretrained(directory, max_shard_size=max_shard_size)
    return model
