"""How attention_prefill's kernels cut their work. Pure: no driver, no cupy."""

import functools
import math
from dataclasses import dataclass

from engine.backends.cuda.source import Build
from engine.backends.cuda.target import DeviceFacts

HEAD_DIMS = (64, 96, 128, 256)
BLOCK_SIZES = (16, 32, 64, 128)
MAX_GROUP = 16
_SWIZZLED_COLUMN = 64  # elements
_SHARED_ALIGNMENT = 1024


@dataclass(frozen=True)
class Tiling:
    """How a kernel cuts its work.

    Attributes:
        rows: query rows in a tile (tokens times packed heads).
        keys: keys in a KV tile, aligned to absolute positions.
        threads, shared_bytes: of a block.
    """

    rows: int
    keys: int
    threads: int
    shared_bytes: int


def _row_bytes(head_dim: int) -> int:
    return math.ceil(head_dim / _SWIZZLED_COLUMN) * _SWIZZLED_COLUMN * 2


@functools.cache
def sm90_tiling(head_dim: int, soft_cap: bool) -> Tiling:
    """Tiles of attention_prefill_sm90.cu; must match the constants there."""
    # Three consumer warpgroups leave too few registers for a soft cap.
    rows = 192 if head_dim == 64 and not soft_cap else 128
    keys = 64 if head_dim == 256 else 128
    q_stages = 1 if head_dim == 256 else 2
    kv_stages = 3 if head_dim == 64 else 2
    shared = (q_stages * rows + 2 * kv_stages * keys) * _row_bytes(head_dim) + _SHARED_ALIGNMENT
    return Tiling(rows, keys, 128 + 2 * rows, shared)


@functools.cache
def portable_tiling(head_dim: int) -> Tiling:
    """Tiles of attention_prefill.cu; must match the constants there."""
    rows = 64 if head_dim == 256 else 128
    return Tiling(rows, 64, 128, (rows + 2 * 64) * _row_bytes(head_dim))


def packed_heads(num_heads: int, num_kv_heads: int) -> int:
    """Query heads of one KV head that share a tile: the largest power of two that divides the group."""
    group = num_heads // num_kv_heads
    return group & -group


def defines(
    head_dim: int,
    block_size: int,
    dtype: int,
    pack: int,
    *,
    window: bool = False,
    soft_cap: bool = False,
    sinks: bool = False,
) -> dict[str, int | str]:
    """What a specialised kernel is compiled with; dtype as dtypes.dtype_code says."""
    return {
        "HEAD_DIM": head_dim,
        "BLOCK_SIZE": block_size,
        "DTYPE": dtype,
        "PACK": pack,
        "WINDOW": int(window),
        "SOFT_CAP": int(soft_cap),
        "SINKS": int(sinks),
    }


def builds(device: DeviceFacts) -> list[Build]:
    """What `make kernels` makes for a device: every head size and element type, blocks of 64."""
    name = "attention_prefill_sm90" if device.arch == "sm_90a" else "attention_prefill"
    found = [Build("attention_prefill_plan", {})]
    for head_dim in HEAD_DIMS:
        for pack in (1, 4):
            found += [Build(name, defines(head_dim, 64, dtype, pack)) for dtype in (0, 1)]
        found.append(Build(name, defines(head_dim, 64, 0, 4, window=True)))
        found.append(Build(name, defines(head_dim, 64, 0, 4, sinks=True)))
        found.append(Build(name, defines(head_dim, 64, 0, 4, window=True, soft_cap=True, sinks=True)))
    return found
