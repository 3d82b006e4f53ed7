"""exp in float32, in operations that a vectoriser understands."""

from __future__ import annotations

import numpy as np

from engine.backends.cpu.jit import device_function


@device_function
def exp32(x: np.float32) -> np.float32:
    """exp(x) within 2e-7 relative for x from -87 to 88; 0 < result for anything below.

    Split x = n ln 2 + r with |r| <= ln 2 / 2, a polynomial for exp(r), and n into the exponent bits.
    Source: Moshier, Cephes library, expf.
    """
    clamped = min(max(x, np.float32(-87.0)), np.float32(88.0))
    n = np.floor(clamped * np.float32(1.44269504) + np.float32(0.5))
    r = clamped - n * np.float32(0.693359375)
    r = r - n * np.float32(-2.12194440e-4)
    p = np.float32(1.9875691500e-4)
    p = p * r + np.float32(1.3981999507e-3)
    p = p * r + np.float32(8.3334519073e-3)
    p = p * r + np.float32(4.1665795894e-2)
    p = p * r + np.float32(1.6666665459e-1)
    p = p * r + np.float32(5.0000001201e-1)
    value = p * r * r + r + np.float32(1.0)
    power = np.int32((np.int32(n) + np.int32(127)) << np.int32(23)).view(np.float32)
    return np.float32(value * power)
