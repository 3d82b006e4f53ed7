"""Which GPU a process uses: always its first one, once `put_gpu_first` has run."""

from __future__ import annotations

import os
from collections.abc import MutableMapping
from pathlib import Path

VISIBLE = "CUDA_VISIBLE_DEVICES"


def check_gpu(number: int) -> None:
    """Check the flag.

    Raises:
        ValueError: it is negative.
    """
    if number < 0:
        raise ValueError(f"gpu: must be at least 0, got {number}")


def put_gpu_first(number: int, environ: MutableMapping[str, str] = os.environ) -> None:
    """Make a GPU this process's first one; before anything of CUDA is used.

    The others stay visible, behind it: a handle from another GPU opens only where that GPU is seen.

    Args:
        number: of those in CUDA_VISIBLE_DEVICES, if that is set.
    Raises:
        ValueError: there is no such GPU.
    """
    gpus = [name for name in environ.get(VISIBLE, "").split(",") if name] or _numbers()
    if number >= len(gpus):
        raise ValueError(f"gpu: {number} is asked for, there are {len(gpus)}")
    if number:
        environ[VISIBLE] = ",".join([gpus[number], *gpus[:number], *gpus[number + 1 :]])


def _numbers() -> list[str]:
    devices = [path for path in Path("/dev").glob("nvidia[0-9]*") if path.name[6:].isdigit()]
    return [str(number) for number in range(len(devices))]
