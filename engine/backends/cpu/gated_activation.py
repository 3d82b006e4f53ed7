"""gated_activation for SiLU, the activation of the whole family, in one pass."""

from __future__ import annotations

import numpy as np
from numba import prange

from engine.backends.cpu.arrays import FloatArray
from engine.backends.cpu.exponential import exp32
from engine.backends.cpu.jit import kernel


@kernel("void(f4[:, ::1], f4[:, ::1])")
def gated_silu(gate_up: FloatArray, out: FloatArray) -> None:
    """gate_up [T, 2 F] -> out [T, F] = gate / (1 + exp(-gate)) * up."""
    width = out.shape[1]
    for t in prange(out.shape[0]):
        for i in range(width):
            gate = gate_up[t, i]
            out[t, i] = gate / (np.float32(1.0) + exp32(-gate)) * gate_up[t, width + i]
