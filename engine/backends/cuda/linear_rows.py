"""linear_rows: products of few rows, bound by reading the weight once (cuda/linear_rows.cu)."""

import functools
from dataclasses import dataclass

import numpy as np
import torch

from engine.backends.cuda import loader
from engine.backends.cuda.dtypes import dtype_code
from engine.backends.cuda.errors import UnsupportedShapeError
from engine.backends.cuda.source import Build
from engine.backends.cuda.target import DeviceFacts

MAX_ROWS = 16
_WARPS = 8
_TILE_ROWS = 16  # of the weight
_SLICE = 512  # of K: a piece of 64 for each warp
_STAGE_BYTES = _WARPS * 2048
_LEAST_SHARE = 8
_LEAST_STAGES = {2: 4, 1: 5}  # by blocks on a multiprocessor
_MOST_STAGES = 12
_RESERVED_BYTES = 1024  # of shared memory, that CUDA takes for each block


@dataclass(frozen=True)
class RowsLayout:
    """How one launch is laid out.

    Attributes:
        share: rows of the weight that a block takes.
        blocks: of the grid.
        stages: pieces in the ring of each warp.
        shared_bytes: of a block.
    """

    share: int
    blocks: int
    stages: int
    shared_bytes: int


@functools.cache
def layout_of(rows: int, out_features: int, in_features: int, device: DeviceFacts) -> RowsLayout | None:
    """The layout for a shape, None if x leaves too little shared memory for the rings. Pure.

    Two blocks a multiprocessor where that is enough: one loads while another ends or begins.
    """
    slices = -(-in_features // _SLICE)
    x_bytes = slices * _SLICE * 2 * rows
    sums_bytes = 2 * _WARPS * rows * (_TILE_ROWS + 1) * 4
    barrier_bytes = _WARPS * (_MOST_STAGES + 1) * 8
    beside = x_bytes + sums_bytes + barrier_bytes
    for per_sm in (2, 1):
        room = min(device.shared_bytes_per_sm // per_sm - _RESERVED_BYTES, device.shared_bytes_per_block)
        stages = (room - beside) // _STAGE_BYTES
        if stages >= _LEAST_STAGES[per_sm]:
            share = max(_LEAST_SHARE, -(-out_features // (device.num_sms * per_sm)))
            stages = min(stages, -(-share // _TILE_ROWS) * slices, _MOST_STAGES)
            return RowsLayout(share, -(-out_features // share), stages, beside + stages * _STAGE_BYTES)
    return None


def rows_that_pay(out_features: int, in_features: int) -> int:
    """Most rows for which this kernel beats cuBLAS, 0: none. From bench/kernels/linear.py on an H200."""
    most = MAX_ROWS if out_features * in_features * 2 <= 16 << 20 else 8
    device = loader.facts()
    return next(
        (rows for rows in range(most, 0, -1) if layout_of(rows, out_features, in_features, device)), 0
    )


def linear_rows(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, out: torch.Tensor | None = None
) -> torch.Tensor:
    """x [M, K], weight [N, K], bias [N] -> out [M, N], float32 if `out` is, else new in x's dtype.

    A row's bits depend on nothing but the row. May start before the kernel ahead of it has ended, so that
    kernel must not write the weight.

    Raises:
        UnsupportedShapeError: more than MAX_ROWS rows, K no multiple of 8, or x too large for shared memory.
    """
    rows, in_features = x.shape
    out_features = weight.shape[0]
    if rows > MAX_ROWS or in_features % 8 or weight.shape[1] != in_features:
        raise UnsupportedShapeError(
            f"x {list(x.shape)}, weight {list(weight.shape)}: at most {MAX_ROWS} rows, K a multiple of 8"
        )
    if not (x.is_contiguous() and weight.is_contiguous()):
        raise UnsupportedShapeError("linear_rows: x and weight must be contiguous")
    if out is None:
        out = torch.empty(rows, out_features, dtype=x.dtype, device=x.device)
    if not rows:
        return out
    facts = loader.facts()
    layout = layout_of(rows, out_features, in_features, facts)
    if layout is None:
        raise UnsupportedShapeError(f"x {list(x.shape)}: too large for the shared memory of {facts.name}")
    defines = {
        "DTYPE": dtype_code(x.dtype),
        "GROUPS": 1 if rows <= 8 else 2,
        "FLOAT_OUT": int(out.dtype == torch.float32),
    }
    loader.load("linear_rows", defines=defines).kernel("linear_rows")(
        (layout.blocks, 1, 1),
        (_WARPS * 32, 1, 1),
        x,
        weight,
        bias,
        out,
        np.int32(rows),
        np.int32(out_features),
        np.int32(in_features),
        np.int32(layout.share),
        np.int32(layout.stages),
        shared_bytes=layout.shared_bytes,
        overlaps=facts.major >= 9,
    )
    return out


def builds(_: DeviceFacts) -> list[Build]:
    """What `make kernels` makes."""
    return [
        Build("linear_rows", {"DTYPE": dtype, "GROUPS": groups, "FLOAT_OUT": floats})
        for dtype in (0, 1)
        for groups in (1, 2)
        for floats in (0, 1)
    ]
