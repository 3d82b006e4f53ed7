"""embedding: rows of a table by token id (cuda/embedding.cu)."""

import numpy as np
import torch

from engine.backends.cuda import loader
from engine.backends.cuda.dtypes import dtype_code
from engine.backends.cuda.errors import UnsupportedShapeError
from engine.backends.cuda.source import Build
from engine.backends.cuda.target import DeviceFacts


def embedding(token_ids: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """token_ids int32[T], table [V, E] -> new [T, E]; an id outside the table gives zeros.

    Raises:
        UnsupportedShapeError: E is no multiple of 8.
    """
    vocabulary, width = table.shape
    if width % 8 or not table.is_contiguous() or token_ids.dtype != torch.int32:
        raise UnsupportedShapeError(
            f"embedding table {list(table.shape)}: contiguous [V, E], E a multiple of 8; ids int32"
        )
    out = torch.empty(token_ids.shape[0], width, dtype=table.dtype, device=table.device)
    if token_ids.shape[0]:
        kernel = loader.load("embedding", defines={"DTYPE": dtype_code(table.dtype)}).kernel("embedding")
        kernel(
            (token_ids.shape[0], 1, 1),
            (256, 1, 1),
            token_ids,
            table,
            out,
            np.int32(vocabulary),
            np.int32(width),
        )
    return out


def builds(_: DeviceFacts) -> list[Build]:
    """What `make kernels` makes."""
    return [Build("embedding", {"DTYPE": dtype}) for dtype in (0, 1)]
