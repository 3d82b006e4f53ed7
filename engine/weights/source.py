"""Tensors by name, whatever the file format. Names are Hugging Face's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch

from engine.errors import ModelLoadError

Shape = tuple[int, ...]

HOST = torch.device("cpu")


class TensorSource(Protocol):
    """The weights of one model."""

    @property
    def origin(self) -> str:
        """The file or directory that errors name."""
        ...

    @property
    def weights_id(self) -> str:
        """Hex digest that differs between different weights."""
        ...

    def shape(self, name: str) -> Shape | None:
        """Shape of a tensor, or None if there is none of that name."""
        ...

    def tensor(self, name: str, device: torch.device = HOST) -> torch.Tensor:
        """A tensor; it may map the file, so the caller must not change it.

        Args:
            device: where it is wanted; a source that reads files gives it on the host all the same.

        Raises:
            ModelLoadError: the bytes cannot be read.
        """
        ...


def check_shapes(source: TensorSource, wanted: Mapping[str, Shape]) -> None:
    """Compare the tensors of a source with those that a model needs.

    Raises:
        ModelLoadError: names the missing tensors, or those of another shape.
    """
    missing = [name for name in wanted if source.shape(name) is None]
    if missing:
        raise ModelLoadError(f"{source.origin}: {_listed(missing, 'missing tensor')}")
    wrong = [
        f"{name} is {list(source.shape(name) or ())}, expected {list(shape)}"
        for name, shape in wanted.items()
        if source.shape(name) != shape
    ]
    if wrong:
        raise ModelLoadError(f"{source.origin}: {_listed(wrong, 'tensor of the wrong shape')}")


def _listed(items: list[str], what: str) -> str:
    shown = "; ".join(items[:5])
    more = f"; and {len(items) - 5} more" if len(items) > 5 else ""
    return f"{len(items)} {what}{'s' if len(items) > 1 else ''}: {shown}{more}"
