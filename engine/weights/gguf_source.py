"""Weights from GGUF under Hugging Face's names."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch

from engine.weights.digest import sampled_digest
from engine.weights.gguf_file import GgufFile
from engine.weights.source import HOST, Shape

_TOP: Mapping[str, str] = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}

_PARTS: Mapping[str, str] = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}

_LAYER = re.compile(r"model\.layers\.(\d+)\.(.+)\.(weight|bias)")


class GgufSource:
    """Every tensor of a GGUF file."""

    def __init__(self, file: GgufFile, rotary_heads: tuple[int, int] | None) -> None:
        """`rotary_heads`: query and key heads whose rows GGUF holds in interleaved order; None: in ours."""
        self.origin = str(file.path)
        self.weights_id = sampled_digest(file.path).hex()
        self._file = file
        self._rotary_heads = rotary_heads

    def shape(self, name: str) -> Shape | None:
        """Shape of a tensor, or None."""
        return self._file.shape(_gguf_name(name))

    def tensor(self, name: str, device: torch.device = HOST) -> torch.Tensor:
        """Dequantised to float32, heads in half-split order."""
        tensor = self._file.tensor(_gguf_name(name))
        if self._rotary_heads is not None:
            if ".q_proj." in name:
                return _split_halves(tensor, self._rotary_heads[0])
            if ".k_proj." in name:
                return _split_halves(tensor, self._rotary_heads[1])
        return tensor


def _split_halves(tensor: torch.Tensor, num_heads: int) -> torch.Tensor:
    """Undo the order of llama's GGUF files: rows of a head as (pair, half) -> (half, pair)."""
    rows = tensor.shape[0]
    pairs = tensor.reshape(num_heads, rows // num_heads // 2, 2, *tensor.shape[1:])
    return pairs.transpose(1, 2).reshape(tensor.shape)


def _gguf_name(name: str) -> str:
    if name in _TOP:
        return _TOP[name]
    match = _LAYER.fullmatch(name)
    assert match is not None, name
    layer, part, kind = match.groups()
    return f"blk.{layer}.{_PARTS[part]}.{kind}"
