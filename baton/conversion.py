"""Turns a GGUF file of the Llama architecture into a model directory in Hugging Face's layout.

GGUF stores three things differently: weights are quantised, the rows of the query and key
projections are ordered for interleaved rotation, and the tokenizer is a bare list of tokens and
merges with the name of its pre-tokenizer. All three are undone here; weights become bfloat16.

Source: the GGUF specification, and the row order of llama.cpp's converter.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from baton.errors import ModelError

if TYPE_CHECKING:
    from gguf import GGUFReader, ReaderTensor

CONTROL_TOKEN = 3  # GGUF token type of <|im_start|> and its like

_FIXED_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_BLOCK_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


@dataclass(frozen=True, slots=True)
class Header:
    """The metadata of a GGUF file, by key; arrays are lists."""

    reader: GGUFReader

    def get(self, key: str) -> object:
        """Return one value.

        Raises:
            ModelError: the file has no such key.
        """
        field = self.reader.get_field(key)
        if field is None:
            raise ModelError(f"the GGUF file has no field {key!r}")
        value: object = field.contents()
        return value

    def integer(self, key: str) -> int:
        """Return one value, as an integer."""
        value = self.get(key)
        if not isinstance(value, int):
            raise ModelError(f"the GGUF field {key!r} must be an integer, got {value!r}")
        return value

    def number(self, key: str) -> float:
        """Return one value, as the shortest decimal that is the same float32."""
        value = self.get(key)
        if not isinstance(value, float | int):
            raise ModelError(f"the GGUF field {key!r} must be a number, got {value!r}")
        return float(str(np.float32(value)))

    def text(self, key: str) -> str:
        """Return one value, as text."""
        value = self.get(key)
        if not isinstance(value, str):
            raise ModelError(f"the GGUF field {key!r} must be text, got {value!r}")
        return value

    def texts(self, key: str) -> list[str]:
        """Return an array of text."""
        value = self.get(key)
        if not isinstance(value, list):
            raise ModelError(f"the GGUF field {key!r} must be an array, got {value!r}")
        return [str(item) for item in value]


def convert(source: Path, target: Path, progress: Callable[[int, int], None]) -> None:
    """Write config, weights, tokenizer and chat template of `source` into the directory `target`.

    Args:
        source: a GGUF file with general.architecture "llama" and a "gpt2" tokenizer.
        target: an existing, empty directory.
        progress: called with (bytes written, bytes in all) of the weights.
    Raises:
        ModelError: the file is no GGUF file, or of another kind; the message names the field.
    """
    from gguf import GGUFReader

    try:
        reader = GGUFReader(source)
    except (ValueError, IndexError, KeyError) as error:
        raise ModelError(f"{source} is not a readable GGUF file: {error}") from error
    header = Header(reader)
    if (architecture := header.text("general.architecture")) != "llama":
        raise ModelError(f"general.architecture of {source} must be llama, got {architecture}")
    tied = all(tensor.name != "output.weight" for tensor in reader.tensors)
    _write_json(target / "config.json", model_config(header, tied))
    _write_json(target / "generation_config.json", generation_config(header))
    write_tokenizer(header, target)
    write_weights(target / "model.safetensors", reader.tensors, header, progress)


def model_config(header: Header, tied: bool) -> dict[str, object]:
    """Return config.json of a LlamaForCausalLM."""
    heads = header.integer("llama.attention.head_count")
    hidden = header.integer("llama.embedding_length")
    theta = header.number("llama.rope.freq_base")
    return {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": header.integer("tokenizer.ggml.bos_token_id"),
        "dtype": "bfloat16",
        "eos_token_id": header.integer("tokenizer.ggml.eos_token_id"),
        "head_dim": hidden // heads,
        "hidden_act": "silu",
        "hidden_size": hidden,
        "initializer_range": 0.02,
        "intermediate_size": header.integer("llama.feed_forward_length"),
        "max_position_embeddings": header.integer("llama.context_length"),
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": heads,
        "num_hidden_layers": header.integer("llama.block_count"),
        "num_key_value_heads": header.integer("llama.attention.head_count_kv"),
        "pad_token_id": header.integer("tokenizer.ggml.padding_token_id"),
        "pretraining_tp": 1,
        "rms_norm_eps": header.number("llama.attention.layer_norm_rms_epsilon"),
        "rope_parameters": {"rope_theta": theta, "rope_type": "default"},
        "rope_scaling": None,
        "rope_theta": theta,
        "tie_word_embeddings": tied,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "vocab_size": header.integer("llama.vocab_size"),
    }


def generation_config(header: Header) -> dict[str, object]:
    """Return generation_config.json."""
    return {
        "bos_token_id": header.integer("tokenizer.ggml.bos_token_id"),
        "eos_token_id": header.integer("tokenizer.ggml.eos_token_id"),
        "pad_token_id": header.integer("tokenizer.ggml.padding_token_id"),
    }


def write_tokenizer(header: Header, target: Path) -> None:
    """Write tokenizer.json, tokenizer_config.json and chat_template.jinja.

    The pre-tokenizer splits every digit off on its own before the byte-level rule applies, which is
    what "smollm" in the file stands for.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    kind = (header.text("tokenizer.ggml.model"), header.text("tokenizer.ggml.pre"))
    if kind != ("gpt2", "smollm"):
        raise ModelError(
            f"tokenizer.ggml.model and .pre must be gpt2 and smollm, got {kind[0]} and {kind[1]}"
        )
    tokens = header.texts("tokenizer.ggml.tokens")
    types = header.get("tokenizer.ggml.token_type")
    assert isinstance(types, list)
    pairs = (merge.partition(" ") for merge in header.texts("tokenizer.ggml.merges"))
    merges = [(left, right) for left, _, right in pairs]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    special = [token for token, kind in zip(tokens, types, strict=True) if kind == CONTROL_TOKEN]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    tokenizer.save(str(target / "tokenizer.json"))

    template = header.text("tokenizer.chat_template")
    (target / "chat_template.jinja").write_text(template, encoding="utf-8")
    config = {
        "add_prefix_space": False,
        "additional_special_tokens": [
            tokens[header.integer(f"tokenizer.ggml.{name}_token_id")] for name in ("bos", "eos")
        ],
        "clean_up_tokenization_spaces": False,
        "model_max_length": header.integer("llama.context_length"),
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    for name in ("bos", "eos", "unknown", "padding"):
        key = {"unknown": "unk", "padding": "pad"}.get(name, name)
        config[f"{key}_token"] = tokens[header.integer(f"tokenizer.ggml.{name}_token_id")]
    _write_json(target / "tokenizer_config.json", config)


def write_weights(
    path: Path, tensors: list[ReaderTensor], header: Header, progress: Callable[[int, int], None]
) -> None:
    """Write all tensors as bfloat16 into one safetensors file."""
    # safetensors' NumPy interface has no bfloat16, so the (simple) header is written here.
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for tensor in tensors:
        shape = [int(n) for n in reversed(tensor.shape)]
        size = 2 * int(np.prod(shape))
        entries[weight_name(tensor.name)] = {
            "dtype": "BF16",
            "shape": shape,
            "data_offsets": [offset, offset + size],
        }
        offset += size
    head = json.dumps(entries, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    written = 0
    with path.open("wb") as file:
        file.write(len(head).to_bytes(8, "little"))
        file.write(head)
        for data in bfloat16_tensors(tensors, header):
            file.write(data.tobytes())
            written += data.nbytes
            progress(written, offset)


def bfloat16_tensors(tensors: list[ReaderTensor], header: Header) -> Iterator[npt.NDArray[np.uint16]]:
    """Yield the tensors in order, dequantised, rows reordered, as the bits of bfloat16."""
    from gguf import dequantize

    rotated = {
        "attn_q": header.integer("llama.attention.head_count"),
        "attn_k": header.integer("llama.attention.head_count_kv"),
    }
    for tensor in tensors:
        values = np.ascontiguousarray(dequantize(tensor.data, tensor.tensor_type), dtype=np.float32)
        part = tensor.name.removesuffix(".weight").rpartition(".")[2]
        if part in rotated:
            values = split_halves(values, rotated[part])
        yield bfloat16_bits(values)


def weight_name(name: str) -> str:
    """Return Hugging Face's name of a GGUF tensor.

    Raises:
        ModelError: a Llama model has no such tensor.
    """
    if name in _FIXED_NAMES:
        return _FIXED_NAMES[name]
    match name.split("."):
        case ["blk", layer, part, "weight"] if part in _BLOCK_NAMES:
            return f"model.layers.{layer}.{_BLOCK_NAMES[part]}.weight"
    raise ModelError(f"unknown tensor {name!r} in the GGUF file")


def split_halves(rows: npt.NDArray[np.float32], num_heads: int) -> npt.NDArray[np.float32]:
    """Reorder the rows of each head from rotated pairs (0, 1), (2, 3) to halves (0, d/2), (1, d/2 + 1).

    Args:
        rows: float32[num_heads * d, k].
    """
    size, width = rows.shape
    pairs = rows.reshape(num_heads, size // num_heads // 2, 2, width)
    return pairs.swapaxes(1, 2).reshape(size, width)


def bfloat16_bits(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    """Round finite float32 to bfloat16, ties to even, and return the bits."""
    bits = np.ascontiguousarray(values).view(np.uint32)
    rounded: npt.NDArray[np.uint32] = bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
    return (rounded >> np.uint32(16)).astype(np.uint16)


def _write_json(path: Path, value: dict[str, object]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
