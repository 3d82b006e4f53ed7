"""gated_activation for SiLU, the activation of the whole family, in one pass."""

from __future__ import annotations

import numpy as np
from numba import prange

from engine.backends.cpu.arrays import FloatArray
from engine.backends.cpu.exponential import exp32
from engine.backends.cpu.jit import SERIAL_ROWS, device_function, kernel


@device_function
def _gated_silu_row(gate_up: FloatArray, out: FloatArray) -> None:
    width = out.shape[0]
    for i in range(width):
        gate = gate_up[i]
        out[i] = gate / (np.float32(1.0) + exp32(-gate)) * gate_up[width + i]


@kernel("void(f4[:, ::1], f4[:, ::1])")
def gated_silu(gate_up: FloatArray, out: FloatArray) -> None:
    """gate_up [T, 2 F] -> out [T, F] = gate / (1 + exp(-gate)) * up."""
    if out.shape[0] < SERIAL_ROWS:
        for t in range(out.shape[0]):
            _gated_silu_row(gate_up[t], out[t])
    else:
        for t in prange(out.shape[0]):
            _gated_silu_row(gate_up[t], out[t])
