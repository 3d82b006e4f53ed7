"""How the kernels name element types: -DDTYPE=0 is bf16, 1 is fp16."""

import torch

from engine.backends.cuda.errors import UnsupportedShapeError

_CODES = {torch.bfloat16: 0, torch.float16: 1}


def dtype_code(dtype: torch.dtype) -> int:
    """Value of -DDTYPE.

    Raises:
        UnsupportedShapeError: neither bf16 nor fp16.
    """
    if dtype not in _CODES:
        raise UnsupportedShapeError(f"dtype {dtype}: the cuda kernels take bfloat16 and float16")
    return _CODES[dtype]
