"""Memory of another process, the vault, that an engine works in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from engine.backends.base import PoolMemory


@dataclass(frozen=True, slots=True)
class WeightsArena:
    """Device memory that holds the weights of a model, in build order.

    Attributes:
        address: of the first byte.
        num_bytes: all of it.
    """

    address: int
    num_bytes: int


@dataclass(frozen=True, slots=True)
class Borrowed:
    """What another process owns and this engine works on.

    Attributes:
        pools: memory of each cache group, `pool_blocks` blocks.
        pool_blocks: blocks of the whole pool; a step may read and write any of them.
        first_block: id of the first block that this engine hands out.
        num_blocks: how many it hands out.
        weights: where the weights are; None: this engine loads them itself.
    """

    pools: Mapping[str, PoolMemory]
    pool_blocks: int
    first_block: int
    num_blocks: int
    weights: WeightsArena | None = None
