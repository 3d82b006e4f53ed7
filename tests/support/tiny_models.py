"""A tiny random Llama on disk, in Hugging Face's layout, in a few milliseconds.

Its greedy answers are varied (large random weights), so tests that compare tokens can fail.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


@dataclass(frozen=True)
class TinyLlama:
    """Sizes of a tiny model; token ids 0 to 2 are special, 3 to 258 are the bytes."""

    vocab_size: int = 272
    hidden_size: int = 32
    intermediate_size: int = 64
    layers: int = 2
    heads: int = 4
    kv_heads: int = 2
    context_length: int = 512
    eos_token_id: int = 2
    seed: int = 0


def save_tiny_llama(path: Path, shape: TinyLlama | None = None) -> Path:
    """Write config, weights, generation config, tokenizer and chat template into `path`."""
    shape = shape or TinyLlama()
    path.mkdir(parents=True, exist_ok=True)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": shape.vocab_size,
        "hidden_size": shape.hidden_size,
        "intermediate_size": shape.intermediate_size,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.hidden_size // shape.heads,
        "max_position_embeddings": shape.context_length,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "attention_bias": False,
        "mlp_bias": False,
        "torch_dtype": "float32",
        "bos_token_id": 0,
        "eos_token_id": shape.eos_token_id,
    }
    (path / "config.json").write_text(json.dumps(config, indent=1))
    generation = {"bos_token_id": 0, "eos_token_id": shape.eos_token_id}
    (path / "generation_config.json").write_text(json.dumps(generation))
    (path / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    save_file(_weights(shape), str(path / "model.safetensors"), metadata={"format": "pt"})
    _byte_tokenizer().save(str(path / "tokenizer.json"))
    return path


def _weights(shape: TinyLlama) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(shape.seed)

    def matrix(rows: int, columns: int, scale: float = 1.0) -> torch.Tensor:
        return torch.randn(rows, columns, generator=generator) * (scale / columns**0.5)

    hidden, ffn = shape.hidden_size, shape.intermediate_size
    kv_width = hidden // shape.heads * shape.kv_heads
    tensors = {
        "model.embed_tokens.weight": torch.randn(shape.vocab_size, hidden, generator=generator),
        "model.norm.weight": torch.ones(hidden),
        "lm_head.weight": matrix(shape.vocab_size, hidden, 4.0),
    }
    for layer in range(shape.layers):
        prefix = f"model.layers.{layer}."
        tensors |= {
            prefix + "input_layernorm.weight": torch.ones(hidden),
            prefix + "post_attention_layernorm.weight": torch.ones(hidden),
            prefix + "self_attn.q_proj.weight": matrix(hidden, hidden, 3.0),
            prefix + "self_attn.k_proj.weight": matrix(kv_width, hidden, 3.0),
            prefix + "self_attn.v_proj.weight": matrix(kv_width, hidden, 2.0),
            prefix + "self_attn.o_proj.weight": matrix(hidden, hidden, 2.0),
            prefix + "mlp.gate_proj.weight": matrix(ffn, hidden, 2.0),
            prefix + "mlp.up_proj.weight": matrix(ffn, hidden, 2.0),
            prefix + "mlp.down_proj.weight": matrix(hidden, ffn, 2.0),
        }
    return tensors


def ids_of(text: str) -> list[int]:
    """Return the ids of a text."""
    ids: list[int] = _byte_tokenizer().encode(text).ids
    return ids


def text_of(token_ids: Sequence[int]) -> str:
    """Return the text of ids."""
    text: str = _byte_tokenizer().decode(list(token_ids))
    return text


@functools.cache
def _byte_tokenizer() -> Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: index for index, token in enumerate((*SPECIAL_TOKENS, *alphabet))}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL_TOKENS])
    return tokenizer
