"""Which positions of a transfer were pushed."""

from __future__ import annotations

from collections.abc import Sequence

from kvtransfer.block_store import BlockStore
from kvtransfer.errors import InvalidTransferError


class Pushes:
    """Checks each push against the reservation, the sender's region, and the pushes before it.

    Attributes:
        num_blocks: pushed so far, over all groups.
    """

    def __init__(self, block_ids: Sequence[Sequence[int]], sources: Sequence[BlockStore]) -> None:
        self.num_blocks = 0
        self._pushed = [bytearray(len(ids)) for ids in block_ids]
        self._sources = sources

    def add(self, group: int, first_index: int, source_block_ids: Sequence[int]) -> None:
        """Note a push.

        Raises:
            InvalidTransferError: out of range, or already pushed; nothing was noted.
        """
        if not 0 <= group < len(self._pushed):
            raise InvalidTransferError("group", f"{group} is not below {len(self._pushed)}")
        pushed, end = self._pushed[group], first_index + len(source_block_ids)
        if not 0 <= first_index <= end <= len(pushed):
            raise InvalidTransferError(
                "first_index", f"blocks {first_index} to {end} of {len(pushed)} in group {group}"
            )
        num_source_blocks = self._sources[group].num_blocks
        for block_id in source_block_ids:
            if not 0 <= block_id < num_source_blocks:
                raise InvalidTransferError("src_block_ids", f"{block_id} is not below {num_source_blocks}")
        if any(pushed[first_index:end]):
            raise InvalidTransferError("first_index", f"blocks {first_index} to {end} were pushed before")
        pushed[first_index:end] = b"\1" * len(source_block_ids)
        self.num_blocks += len(source_block_ids)
