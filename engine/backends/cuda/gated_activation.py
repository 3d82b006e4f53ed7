"""gated_activation: activation(gate) * up (cuda/gated_activation.cu)."""

import numpy as np
import torch

from engine.backends.base import Activation
from engine.backends.cuda import loader
from engine.backends.cuda.dtypes import dtype_code
from engine.backends.cuda.errors import UnsupportedShapeError
from engine.backends.cuda.source import Build
from engine.backends.cuda.target import DeviceFacts

_CODES = {Activation.SILU: 0, Activation.GELU: 1, Activation.GELU_TANH: 2}
_COLUMNS = 4096  # of one block


def gated_activation(gate_up: torch.Tensor, activation: Activation) -> torch.Tensor:
    """gate_up [T, 2 F] (gate, then up) -> new [T, F] = activation(gate) * up.

    Raises:
        UnsupportedShapeError: F is no multiple of 8.
    """
    tokens, double_width = gate_up.shape
    width = double_width // 2
    if width % 8 or double_width % 2 or not gate_up.is_contiguous():
        raise UnsupportedShapeError(f"gate_up {list(gate_up.shape)}: contiguous [T, 2 F], F a multiple of 8")
    module = loader.load(
        "gated_activation", defines={"DTYPE": dtype_code(gate_up.dtype), "ACTIVATION": _CODES[activation]}
    )
    out = torch.empty(tokens, width, dtype=gate_up.dtype, device=gate_up.device)
    if tokens:
        grid = (tokens, -(-width // _COLUMNS), 1)
        module.kernel("gated_activation")(
            grid, (256, 1, 1), gate_up, out, np.int32(width), overlaps=loader.facts().major >= 9
        )
    return out


def builds(_: DeviceFacts) -> list[Build]:
    """What `make kernels` makes: every activation."""
    return [
        Build("gated_activation", {"DTYPE": dtype, "ACTIVATION": code})
        for code in _CODES.values()
        for dtype in (0, 1)
    ]
