"""The memory of a KV pool: an allocation of its own, or an address that somebody else owns."""

from __future__ import annotations

import torch

from engine.backends.cuda import driver
from engine.kv.layout import CacheGroup

_DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}


class _Bytes:
    """Device memory as other libraries take it over."""

    def __init__(self, address: int, num_bytes: int) -> None:
        self.__cuda_array_interface__ = {
            "shape": (num_bytes,),
            "typestr": "|u1",
            "data": (address, False),
            "strides": None,
            "version": 3,
        }


def bytes_at(address: int, num_bytes: int) -> torch.Tensor:
    """uint8[num_bytes] over device memory, which must outlive it."""
    return torch.as_tensor(_Bytes(address, num_bytes), device="cuda")


def pool_blocks(group: CacheGroup, num_blocks: int, address: int | None) -> torch.Tensor:
    """[num_blocks, *group.shape] at an address, or in memory taken straight from the driver.

    A pool must be one allocation of its own: a handle that another process opens names all of one.
    """
    num_bytes = num_blocks * group.block_bytes
    if address is None:
        address = driver.allocate(num_bytes)
    return bytes_at(address, num_bytes).view(_DTYPES[group.dtype]).view(num_blocks, *group.shape)
