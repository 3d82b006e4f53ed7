"""rms_norm and layer_norm on rows (cuda/rms_norm.cu, cuda/layer_norm.cu)."""

import numpy as np
import torch

from engine.backends.cuda import loader
from engine.backends.cuda.dtypes import dtype_code
from engine.backends.cuda.errors import UnsupportedShapeError
from engine.backends.cuda.source import Build
from engine.backends.cuda.target import DeviceFacts

MAX_WIDTH = 1024 * 4 * 8


def row_shape(width: int) -> tuple[int, int]:
    """Threads and 8-element vectors a thread for a row. Pure.

    Raises:
        UnsupportedShapeError: width is no multiple of 8 or above 32768.
    """
    if width % 8 or not 0 < width <= MAX_WIDTH:
        raise UnsupportedShapeError(f"row width {width}: a multiple of 8, at most {MAX_WIDTH}")
    vectors = width // 8
    threads = next(threads for threads in (32, 64, 128, 256, 512, 1024) if threads * 4 >= vectors)
    return threads, -(-vectors // threads)


def rows_of_block(threads: int) -> int:
    """Rows that share a block: kRowsOfBlock in norm.cuh. Pure."""
    return 4 if threads == 32 else 1


def _launch(
    name: str, x: torch.Tensor, residual: torch.Tensor | None, eps: float, *weights: torch.Tensor | None
) -> torch.Tensor:
    if x.dim() != 2 or not x.is_contiguous() or (residual is not None and residual.shape != x.shape):
        raise UnsupportedShapeError(
            f"{name}: x {list(x.shape)} must be contiguous [T, E], and residual like it"
        )
    threads, vecs = row_shape(x.shape[1])
    module = loader.load(name, defines={"DTYPE": dtype_code(x.dtype), "THREADS": threads, "VECS": vecs})
    out = torch.empty_like(x)
    rows = rows_of_block(threads)
    if x.shape[0]:
        module.kernel(name)(
            (-(-x.shape[0] // rows), 1, 1),
            (threads, rows, 1),
            x,
            *weights,
            residual,
            out,
            np.int32(x.shape[0]),
            np.int32(x.shape[1]),
            np.float32(eps),
            overlaps=loader.facts().major >= 9,
        )
    return out


def rms_norm(
    x: torch.Tensor, weight: torch.Tensor, eps: float, residual: torch.Tensor | None = None
) -> torch.Tensor:
    """x [T, E], weight [E] -> new [T, E]. Modifies residual [T, E] to residual + x and norms that.

    Raises:
        UnsupportedShapeError: E is no multiple of 8 or above 32768.
    Source: Zhang and Sennrich 2019.
    """
    return _launch("rms_norm", x, residual, eps, weight)


def layer_norm(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    eps: float,
    residual: torch.Tensor | None = None,
) -> torch.Tensor:
    """As rms_norm, with the mean taken off and a bias [E] added. Source: Ba et al. 2016."""
    return _launch("layer_norm", x, residual, eps, weight, bias)


def builds(_: DeviceFacts) -> list[Build]:
    """What `make kernels` makes: the common row widths."""
    shapes = sorted({row_shape(width) for width in (576, 768, 1024, 2048, 3072, 4096, 5120, 8192)})
    return [
        Build(name, {"DTYPE": dtype, "THREADS": threads, "VECS": vecs})
        for name in ("rms_norm", "layer_norm")
        for threads, vecs in shapes
        for dtype in (0, 1)
    ]
