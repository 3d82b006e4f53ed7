"""linear_rows: products of few rows with weights that are read in microseconds (cuda/linear_rows.cu)."""

import numpy as np
import torch

from engine.backends.cuda import loader
from engine.backends.cuda.dtypes import dtype_code
from engine.backends.cuda.errors import UnsupportedShapeError
from engine.backends.cuda.source import Build
from engine.backends.cuda.target import DeviceFacts

MAX_ROWS = 16
_THREADS = 256
_BLOCKS_PER_SM = 2


def rows_that_pay(out_features: int, in_features: int) -> int:
    """Most rows for which this kernel beats cuBLAS, 0: none. From bench/kernels/linear.py on an H200."""
    num_bytes = out_features * in_features * 2
    if num_bytes <= 16 << 20:
        return MAX_ROWS
    return 8 if num_bytes <= 32 << 20 else 0


def tiles_of(rows: int, out_features: int, num_sms: int) -> int:
    """16-row tiles of the weight that a block takes at once. Pure.

    Two read the input half as often; one spreads a narrow weight over all multiprocessors.
    """
    return 2 if rows <= 8 and out_features >= 64 * num_sms else 1


def linear_rows(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, out: torch.Tensor | None = None
) -> torch.Tensor:
    """x [M, K], weight [N, K], bias [N] -> out [M, N], float32 if `out` is, else new in x's dtype.

    A row's bits depend on nothing but the row. May start before the kernel ahead of it has ended, so that
    kernel must not write the weight.

    Raises:
        UnsupportedShapeError: more than MAX_ROWS rows, or K is no multiple of 8.
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
    tiles = tiles_of(rows, out_features, facts.num_sms)
    defines = {
        "DTYPE": dtype_code(x.dtype),
        "TILES": tiles,
        "GROUPS": 1 if rows <= 8 else 2,
        "FLOAT_OUT": int(out.dtype == torch.float32),
    }
    loader.load("linear_rows", defines=defines).kernel("linear_rows")(
        (min(-(-out_features // (16 * tiles)), _BLOCKS_PER_SM * facts.num_sms), 1, 1),
        (_THREADS, 1, 1),
        x,
        weight,
        bias,
        out,
        np.int32(rows),
        np.int32(out_features),
        np.int32(in_features),
        overlaps=facts.major >= 9,
    )
    return out


def builds(_: DeviceFacts) -> list[Build]:
    """What `make kernels` makes."""
    return [
        Build("linear_rows", {"DTYPE": dtype, "TILES": tiles, "GROUPS": groups, "FLOAT_OUT": floats})
        for dtype in (0, 1)
        for tiles, groups in ((1, 1), (2, 1), (1, 2))
        for floats in (0, 1)
    ]
