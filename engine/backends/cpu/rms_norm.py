"""rms_norm, with the residual added in the same pass."""

from __future__ import annotations

import numpy as np
from numba import prange

from engine.backends.cpu.arrays import FloatArray
from engine.backends.cpu.jit import SERIAL_ROWS, device_function, kernel


@device_function
def _rms_norm_row(x: FloatArray, weight: FloatArray, eps: np.float32, out: FloatArray) -> None:
    total = np.float32(0.0)
    for i in range(x.shape[0]):
        total += x[i] * x[i]
    factor = np.float32(1.0) / np.sqrt(total / np.float32(x.shape[0]) + eps)
    for i in range(x.shape[0]):
        out[i] = x[i] * factor * weight[i]


@device_function
def _add(x: FloatArray, residual: FloatArray) -> None:
    for i in range(x.shape[0]):
        residual[i] += x[i]


@kernel("void(f4[:, ::1], f4[::1], f4, f4[:, ::1])")
def rms_norm(x: FloatArray, weight: FloatArray, eps: np.float32, out: FloatArray) -> None:
    """x [T, E] -> out [T, E]."""
    if x.shape[0] < SERIAL_ROWS:
        for t in range(x.shape[0]):
            _rms_norm_row(x[t], weight, eps, out[t])
    else:
        for t in prange(x.shape[0]):
            _rms_norm_row(x[t], weight, eps, out[t])


@kernel("void(f4[:, ::1], f4[:, ::1], f4[::1], f4, f4[:, ::1])")
def add_rms_norm(
    x: FloatArray, residual: FloatArray, weight: FloatArray, eps: np.float32, out: FloatArray
) -> None:
    """residual += x; out = norm of residual. All [T, E]."""
    if x.shape[0] < SERIAL_ROWS:
        for t in range(x.shape[0]):
            _add(x[t], residual[t])
            _rms_norm_row(residual[t], weight, eps, out[t])
    else:
        for t in prange(x.shape[0]):
            _add(x[t], residual[t])
            _rms_norm_row(residual[t], weight, eps, out[t])
