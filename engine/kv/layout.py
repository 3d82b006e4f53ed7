"""Shape of the KV memory: cache groups, block bytes and the layout fingerprint."""

from __future__ import annotations

import enum
import hashlib
import json
import math
from dataclasses import dataclass

LAYOUT_VERSION = 1

DTYPE_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}


class CacheKind(enum.Enum):
    """What a block of a group holds."""

    ATTENTION = "attention"
    LATENT = "latent"
    STATE = "state"
    SLIDING_WINDOW = "sliding_window"


@dataclass(frozen=True, slots=True)
class CacheGroup:
    """Layers that share one block table.

    Attributes:
        name: unique; the name of the region on the wire.
        kind: what a block holds.
        layer_ids: model layers, in the order in which they lie in a block.
        block_size: tokens a block.
        shape: one block, block-major; attention: (layers, 2, kv_heads, block_size, head_dim).
        dtype: "float32", "float16" or "bfloat16".
    """

    name: str
    kind: CacheKind
    layer_ids: tuple[int, ...]
    block_size: int
    shape: tuple[int, ...]
    dtype: str

    @property
    def block_bytes(self) -> int:
        """Bytes of one block."""
        return math.prod(self.shape) * DTYPE_BYTES[self.dtype]

    def num_blocks_for(self, num_tokens: int) -> int:
        """Blocks that hold `num_tokens` tokens."""
        return -(-num_tokens // self.block_size)


@dataclass(frozen=True, slots=True)
class KVLayout:
    """All cache groups of a model.

    Attributes:
        model: name; part of the fingerprint.
        weights_id: identifies the weights (hash of config and weight index); part of the fingerprint.
        groups: at least one.
        tensor_parallel: (rank, size).
    """

    model: str
    weights_id: str
    groups: tuple[CacheGroup, ...]
    tensor_parallel: tuple[int, int] = (0, 1)

    def fingerprint(self) -> str:
        """Hex digest that two workers must share to pass blocks to each other."""
        facts = [
            LAYOUT_VERSION,
            self.model,
            self.weights_id,
            list(self.tensor_parallel),
            [
                [g.name, g.kind.value, list(g.layer_ids), g.block_size, list(g.shape), g.dtype]
                for g in self.groups
            ],
        ]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]
