"""Random weights from a seed: the speed of a model without its files.

The numbers of a tensor depend on seed, name and the kind of device that draws them.
"""

from __future__ import annotations

import hashlib

import torch

from engine.weights.source import HOST, Shape


class RandomSource:
    """Gives any tensor that is asked for; the same seed gives the same numbers in any order."""

    def __init__(self, origin: str, seed: int, shapes: dict[str, Shape]) -> None:
        """`shapes` holds the tensors that exist."""
        self.origin = origin
        self.weights_id = hashlib.sha256(f"random {seed} {sorted(shapes.items())}".encode()).hexdigest()
        self._seed = seed
        self._shapes = shapes

    def shape(self, name: str) -> Shape | None:
        """Shape of a tensor, or None."""
        return self._shapes.get(name)

    def tensor(self, name: str, device: torch.device = HOST) -> torch.Tensor:
        """Norms are 1, the rest uniform of variance 1 / columns, so that activations keep their size."""
        shape = self._shapes[name]
        if name.endswith("norm.weight"):
            return torch.ones(shape, device=device)
        digest = hashlib.sha256(f"{self._seed} {name}".encode()).digest()
        generator = torch.Generator(device).manual_seed(int.from_bytes(digest[:8], "little") >> 1)
        limit = (3.0 / shape[-1]) ** 0.5
        return torch.empty(shape, device=device).uniform_(-limit, limit, generator=generator)
