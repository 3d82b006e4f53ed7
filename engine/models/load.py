"""From a model path to an architecture and a source of its weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from engine.errors import ModelLoadError
from engine.models.architecture import Architecture
from engine.models.checkpoint import expected_shapes
from engine.models.config_fields import ConfigFields
from engine.models.hf_config import load_hf_config, read_json
from engine.weights.random_source import RandomSource
from engine.weights.safetensors_source import SafetensorsSource
from engine.weights.source import TensorSource

RANDOM_WEIGHTS = "random_weights.json"


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """What a model path holds."""

    architecture: Architecture
    source: TensorSource


def load_model_config(path: str) -> Architecture:
    """The architecture at a model path. Raises as open_model does; safetensors are not opened."""
    found = _checked(path)
    return load_hf_config(found) if found.is_dir() else _open_gguf(found).architecture


def open_model(path: str) -> ModelFiles:
    """Open a directory in Hugging Face's layout, or a GGUF file.

    A directory with random_weights.json ({"seed": 0}) in place of weights gives random ones.

    Raises:
        ModelLoadError: the path is neither, or a file of it cannot be used; the message names it.
        UnsupportedArchitectureError: the architecture is not one of those supported.
    """
    found = _checked(path)
    if not found.is_dir():
        return _open_gguf(found)
    architecture = load_hf_config(found)
    marker = found / RANDOM_WEIGHTS
    if marker.is_file():
        seed = ConfigFields(read_json(marker), str(marker)).integer("seed", 0)
        return ModelFiles(architecture, RandomSource(path, seed, expected_shapes(architecture)))
    return ModelFiles(architecture, SafetensorsSource(found))


def _checked(path: str) -> Path:
    found = Path(path)
    if not found.exists():
        raise ModelLoadError(f"{path}: no such file or directory")
    if found.is_dir():
        if not (found / "config.json").is_file():
            raise ModelLoadError(f"{path}: not a model directory: it has no config.json")
    elif found.suffix != ".gguf":
        raise ModelLoadError(f"{path}: neither a model directory nor a .gguf file")
    return found


def _open_gguf(path: Path) -> ModelFiles:
    # Reading GGUF loads a library that nothing else needs.
    from engine.models.gguf_config import gguf_architecture, is_interleaved
    from engine.weights.gguf_file import GgufFile
    from engine.weights.gguf_source import GgufSource

    file = GgufFile(path)
    architecture = gguf_architecture(file)
    heads = (architecture.num_heads, architecture.num_kv_heads) if is_interleaved(file) else None
    return ModelFiles(architecture, GgufSource(file, heads))
