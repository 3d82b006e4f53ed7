"""A GGUF file through the gguf library: its fields and its tensors."""

from __future__ import annotations

from pathlib import Path

import gguf
import torch

from engine.errors import ModelLoadError
from engine.weights.source import Shape


class GgufFile:
    """Metadata and tensors under GGUF's own names; the file stays mapped."""

    def __init__(self, path: Path) -> None:
        """Parse the header.

        Raises:
            ModelLoadError: truncated, corrupt, or not a GGUF file.
        """
        self.path = path
        try:
            self._reader = gguf.GGUFReader(path)
            self.fields: dict[str, object] = {
                name: _contents(field) for name, field in self._reader.fields.items() if name[:5] != "GGUF."
            }
        # The library meets a broken file with whatever its parsing trips over.
        except Exception as error:
            raise ModelLoadError(f"{path}: truncated or not a GGUF file: {error!r}") from error
        self._tensors = {tensor.name: tensor for tensor in self._reader.tensors}

    def shape(self, name: str) -> Shape | None:
        """Shape in torch's order, or None if there is no such tensor."""
        tensor = self._tensors.get(name)
        return None if tensor is None else tuple(int(size) for size in reversed(tensor.shape))

    def tensor(self, name: str) -> torch.Tensor:
        """Dequantised to float32.

        Raises:
            ModelLoadError: a quantisation that the library cannot undo.
        """
        tensor = self._tensors[name]
        try:
            values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        except (NotImplementedError, ValueError) as error:
            raise ModelLoadError(f"{self.path}: {name}: {error}") from error
        return torch.from_numpy(values.copy()).view(self.shape(name) or ())


def _contents(field: gguf.ReaderField) -> object:
    """Values of a field, but not of long arrays, which only a tokenizer needs."""
    is_array = field.types and field.types[0] == gguf.GGUFValueType.ARRAY
    contents: object = len(field.data) if is_array else field.contents()
    return contents
