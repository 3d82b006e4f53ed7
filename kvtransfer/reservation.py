"""Checks what a reservation says, on both sides."""

from __future__ import annotations

from collections.abc import Sequence

from kvtransfer.errors import InvalidTransferError
from kvtransfer.frames import MAX_U32


def check_reservation(
    epoch: int, block_ids: Sequence[Sequence[int]], lease_s: float, num_blocks: Sequence[int]
) -> None:
    """Check what a reservation says.

    Args:
        epoch: 1 to 2^32 - 1.
        block_ids: one list a region, each id once and below its region's number of blocks.
        lease_s: above 0, seconds; at most a day.
        num_blocks: of each region.
    Raises:
        InvalidTransferError: something is out of range.
    """
    if not 1 <= epoch <= MAX_U32:
        raise InvalidTransferError("epoch", f"{epoch} is not in 1 to {MAX_U32}")
    if not 0.001 <= lease_s <= 86_400:
        raise InvalidTransferError("lease_s", f"{lease_s} is not in 0.001 to 86400 seconds")
    if len(block_ids) != len(num_blocks):
        raise InvalidTransferError("block_ids", f"{len(block_ids)} lists for {len(num_blocks)} regions")
    for group, (ids, limit) in enumerate(zip(block_ids, num_blocks, strict=True)):
        if len(set(ids)) != len(ids):
            raise InvalidTransferError("block_ids", f"a block is listed twice in group {group}")
        if ids and not (min(ids) >= 0 and max(ids) < limit):
            raise InvalidTransferError("block_ids", f"group {group}: ids must be in 0 to {limit - 1}")
