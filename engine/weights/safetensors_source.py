"""Weights from safetensors, single or sharded, memory-mapped."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from engine.errors import ModelLoadError
from engine.weights.digest import sampled_digest
from engine.weights.source import HOST, Shape

_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
_MAX_HEADER_BYTES = 100 << 20

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}


@dataclass(frozen=True, slots=True)
class _Entry:
    dtype: str
    shape: Shape
    start: int
    end: int


class _Shard:
    """One file: its header and its mapped bytes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            size = path.stat().st_size
            with path.open("rb") as file:
                prefix = file.read(8)
                header_bytes = int.from_bytes(prefix, "little")
                if len(prefix) < 8 or header_bytes > min(size - 8, _MAX_HEADER_BYTES):
                    raise ModelLoadError(f"{path}: truncated or not a safetensors file ({size} bytes)")
                self.header = file.read(header_bytes)
        except FileNotFoundError:
            raise ModelLoadError(f"{path}: no such file") from None
        except OSError as error:
            raise ModelLoadError(f"{path}: cannot be read: {error}") from error
        self.entries = _parse_header(path, self.header, 8 + header_bytes)
        expected = max((entry.end for entry in self.entries.values()), default=0)
        if expected > size:
            raise ModelLoadError(f"{path}: truncated: {size} bytes, its header needs {expected}")
        # Copy-on-write, so that torch sees writable memory while the file stays as it is.
        self._bytes = torch.from_numpy(np.memmap(path, dtype=np.uint8, mode="c"))

    def tensor(self, name: str) -> torch.Tensor:
        entry = self.entries[name]
        data = self._bytes[entry.start : entry.end]
        dtype = _DTYPES[entry.dtype]
        if entry.start % dtype.itemsize:
            data = data.clone()
        return data.view(dtype).view(entry.shape)


class SafetensorsSource:
    """Every tensor of a model directory."""

    def __init__(self, directory: Path) -> None:
        """Map the files.

        Raises:
            ModelLoadError: a file is missing, truncated or malformed; the message names it.
        """
        self.origin = str(directory)
        index = directory / _INDEX
        if (directory / _SINGLE).is_file() or not index.is_file():
            self._shards = [_Shard(directory / _SINGLE)]
        else:
            self._shards = [_Shard(directory / name) for name in _shard_names(index)]
        self._by_name = {name: shard for shard in self._shards for name in shard.entries}

    @property
    def weights_id(self) -> str:
        """Digest over all files."""
        return hashlib.sha256(
            b"".join(sampled_digest(shard.path, shard.header) for shard in self._shards)
        ).hexdigest()

    def shape(self, name: str) -> Shape | None:
        """Shape of a tensor, or None."""
        shard = self._by_name.get(name)
        return None if shard is None else shard.entries[name].shape

    def tensor(self, name: str, device: torch.device = HOST) -> torch.Tensor:
        """A view of the mapped file."""
        shard = self._by_name[name]
        if shard.entries[name].dtype not in _DTYPES:
            raise ModelLoadError(
                f"{shard.path}: {name} has dtype {shard.entries[name].dtype}; supported: {', '.join(_DTYPES)}"
            )
        return shard.tensor(name)


def _parse_header(path: Path, header: bytes, base: int) -> dict[str, _Entry]:
    try:
        values = json.loads(header)
        entries = {
            str(name): _Entry(
                dtype=str(value["dtype"]),
                shape=tuple(int(size) for size in value["shape"]),
                start=base + int(value["data_offsets"][0]),
                end=base + int(value["data_offsets"][1]),
            )
            for name, value in values.items()
            if name != "__metadata__"
        }
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise ModelLoadError(f"{path}: malformed safetensors header: {error!r}") from error
    for name, entry in entries.items():
        dtype = _DTYPES.get(entry.dtype)
        if dtype is not None and int(np.prod(entry.shape)) * dtype.itemsize != entry.end - entry.start:
            raise ModelLoadError(f"{path}: {name}: {entry.end - entry.start} bytes for {list(entry.shape)}")
        if entry.start < base or entry.end < entry.start:
            raise ModelLoadError(f"{path}: {name}: offsets outside the file")
    return entries


def _shard_names(index: Path) -> list[str]:
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        names = sorted({str(name) for name in weight_map.values()})
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelLoadError(f"{index}: malformed index: {error!r}") from error
    if not names:
        raise ModelLoadError(f"{index}: lists no files")
    for name in names:
        if os.path.basename(name) != name:
            raise ModelLoadError(f"{index}: {name!r} is not a file of this directory")
    return names
