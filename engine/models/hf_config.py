"""Reads Hugging Face's config.json into an Architecture.

Both spellings are read: `rope_scaling` beside `rope_theta`, and transformers 5's `rope_parameters`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from engine.backends.base import Activation
from engine.errors import ModelLoadError, UnsupportedArchitectureError
from engine.models.architecture import Architecture
from engine.models.config_fields import ConfigFields
from engine.models.hf_rope import rope_parameters

Windows = tuple[int | None, ...]


@dataclass(frozen=True, slots=True)
class _Family:
    """What an architecture fixes beyond what its config says."""

    qkv_bias: Callable[[ConfigFields], bool]
    output_bias: Callable[[ConfigFields], bool]
    qk_norm: bool
    windows: Callable[[ConfigFields, int], Windows]


def _full(fields: ConfigFields, num_layers: int) -> Windows:
    return (None,) * num_layers


def _every_layer(fields: ConfigFields, num_layers: int) -> Windows:
    return (fields.optional_integer("sliding_window"),) * num_layers


def _upper_layers(fields: ConfigFields, num_layers: int) -> Windows:
    """Qwen: `layer_types` if given, else the layers from max_window_layers on."""
    window = (
        fields.optional_integer("sliding_window") if fields.boolean("use_sliding_window", False) else None
    )
    types = fields.strings("layer_types")
    if types:
        fields.check(
            len(types) == num_layers, "layer_types", f"has {len(types)} entries for {num_layers} layers"
        )
        return tuple(window if kind == "sliding_attention" else None for kind in types)
    first = fields.integer("max_window_layers", 28)
    return tuple(window if layer >= first else None for layer in range(num_layers))


def _attention_bias(fields: ConfigFields) -> bool:
    return fields.boolean("attention_bias", False)


def _always(fields: ConfigFields) -> bool:
    return True


def _never(fields: ConfigFields) -> bool:
    return False


_FAMILIES: Mapping[str, _Family] = {
    "LlamaForCausalLM": _Family(_attention_bias, _attention_bias, qk_norm=False, windows=_full),
    "MistralForCausalLM": _Family(_never, _never, qk_norm=False, windows=_every_layer),
    "Qwen2ForCausalLM": _Family(_always, _never, qk_norm=False, windows=_upper_layers),
    "Qwen3ForCausalLM": _Family(_attention_bias, _attention_bias, qk_norm=True, windows=_upper_layers),
}

_MODEL_TYPES: Mapping[str, str] = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}

_ACTIVATIONS: Mapping[str, Activation] = {
    "silu": Activation.SILU,
    "swish": Activation.SILU,
    "gelu": Activation.GELU,
    "gelu_pytorch_tanh": Activation.GELU_TANH,
    "gelu_new": Activation.GELU_TANH,
}

SUPPORTED_ARCHITECTURES: tuple[str, ...] = tuple(_FAMILIES)


def load_hf_config(directory: Path) -> Architecture:
    """Read `directory`/config.json, and the end tokens of generation_config.json where there is one.

    Raises:
        ModelLoadError: a file is missing, not JSON, or a field is missing or of the wrong type.
        UnsupportedArchitectureError: the architecture is not one of those supported.
    """
    config = ConfigFields(read_json(directory / "config.json"), str(directory / "config.json"))
    generation_path = directory / "generation_config.json"
    generation = (
        ConfigFields(read_json(generation_path), str(generation_path))
        if generation_path.is_file()
        else config
    )
    return parse_hf_config(config, generation.integers("eos_token_id") or config.integers("eos_token_id"))


def parse_hf_config(fields: ConfigFields, eos_token_ids: tuple[int, ...]) -> Architecture:
    """Describe the architecture that a config's fields name. Raises as load_hf_config does."""
    name = _architecture_name(fields)
    family = _FAMILIES[name]
    if fields.has("quantization_config"):
        fields.fail("quantization_config", "quantized weights are not supported")
    num_layers = fields.integer("num_hidden_layers")
    num_heads = fields.integer("num_attention_heads")
    hidden_size = fields.integer("hidden_size")
    num_kv_heads = fields.optional_integer("num_key_value_heads") or num_heads
    fields.check(
        num_heads % num_kv_heads == 0,
        "num_key_value_heads",
        f"{num_kv_heads} does not divide {num_heads} attention heads",
    )
    head_dim = fields.optional_integer("head_dim") or hidden_size // num_heads
    activation = fields.string("hidden_act", "silu")
    fields.check(
        activation in _ACTIVATIONS, "hidden_act", f"{activation!r} is not one of {', '.join(_ACTIVATIONS)}"
    )
    max_positions = fields.integer("max_position_embeddings", 2048)
    return Architecture(
        name=name,
        num_layers=num_layers,
        hidden_size=hidden_size,
        intermediate_size=fields.integer("intermediate_size"),
        vocab_size=fields.integer("vocab_size"),
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        max_positions=max_positions,
        rope=rope_parameters(fields, head_dim, max_positions),
        norm_eps=fields.number("rms_norm_eps", 1e-6),
        activation=_ACTIVATIONS[activation],
        qkv_bias=family.qkv_bias(fields),
        output_bias=family.output_bias(fields),
        mlp_bias=fields.boolean("mlp_bias", False),
        qk_norm=family.qk_norm,
        tied_embeddings=fields.boolean("tie_word_embeddings", False),
        sliding_windows=family.windows(fields, num_layers),
        eos_token_ids=frozenset(eos_token_ids),
    )


def _architecture_name(fields: ConfigFields) -> str:
    names = fields.strings("architectures")
    model_type = fields.string("model_type", "")
    name = names[0] if names else _MODEL_TYPES.get(model_type, model_type or "(none named)")
    if name not in _FAMILIES:
        raise UnsupportedArchitectureError(
            f"{fields.origin}: architecture {name} is not supported; "
            f"supported: {', '.join(SUPPORTED_ARCHITECTURES)}"
        )
    return name


def read_json(path: Path) -> dict[str, object]:
    """A JSON object from a file. Raises ModelLoadError if it is missing or is not one."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelLoadError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:
        raise ModelLoadError(f"{path}: cannot be read as JSON: {error}") from error
    if not isinstance(value, dict):
        raise ModelLoadError(f"{path}: must hold a JSON object")
    return value
