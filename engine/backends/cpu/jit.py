"""Compilation of the CPU kernels: numba, cached on disk, sharing torch's OpenMP threads.

torch must be loaded first: numba's "omp" layer then resolves to the OpenMP runtime that torch brought,
so both use one pool of threads and hand over without waking anyone (1.3 µs a parallel region).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch  # its OpenMP runtime must be the first one

# numba reads this once, when it is imported; kernels then use as many threads as torch does.
os.environ.setdefault("NUMBA_NUM_THREADS", str(torch.get_num_threads()))

from numba import config, njit

P = ParamSpec("P")
R = TypeVar("R")

# Enough to vectorise sums and to fuse multiply-add; infinities and NaN keep their meaning.
_FASTMATH = {"contract", "reassoc", "nsz", "arcp"}

# Fewer rows than this are run by the calling thread: waking the others costs more (about 10 µs each
# where OpenMP's threads sleep between regions, as they must when processes share the cores).
SERIAL_ROWS = 16

config.THREADING_LAYER_PRIORITY = ["omp", "tbb", "workqueue"]


def kernel(signature: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Compile a kernel whose `prange` loops run on all threads; it releases the GIL.

    With its signature given, one version is compiled, at import, whatever the first call passes.
    """

    def compiled(function: Callable[P, R]) -> Callable[P, R]:
        result: Callable[P, R] = njit(
            signature, parallel=True, nogil=True, cache=True, fastmath=_FASTMATH, error_model="numpy"
        )(function)
        return result

    return compiled


def device_function(function: Callable[P, R]) -> Callable[P, R]:
    """Compile a function that kernels call."""
    compiled: Callable[P, R] = njit(
        nogil=True, cache=True, fastmath=_FASTMATH, error_model="numpy", inline="never"
    )(function)
    return compiled
