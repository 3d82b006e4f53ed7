"""Which positions of a transfer were pushed, and which are in place."""

from __future__ import annotations

from collections.abc import Sequence

from kvtransfer.block_store import BlockStore
from kvtransfer.errors import InvalidTransferError
from kvtransfer.runs import PushedRun


class Pushes:
    """Checks each push against the reservation, the sender's region, and the pushes before it.

    `add` is for the thread that pushes, `wrote` for turns of the loop.

    Attributes:
        num_blocks: pushed so far, over all groups; those pushed in parts, once all of them are.
    """

    def __init__(self, block_ids: Sequence[Sequence[int]], sources: Sequence[BlockStore]) -> None:
        self.num_blocks = 0
        self._num_begun = 0
        self._pushed = [[0] * len(ids) for ids in block_ids]
        self._written = [[0] * len(ids) for ids in block_ids]
        self._sources = sources

    @property
    def has_unfinished(self) -> bool:
        """Whether of some block only a part was pushed."""
        return self._num_begun > self.num_blocks

    def add(
        self, group: int, first_index: int, source_block_ids: Sequence[int], part: range | None = None
    ) -> None:
        """Note a push.

        Raises:
            InvalidTransferError: out of range, already pushed, or not the next part of each block; nothing
                was noted.
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
        size = self._sources[group].block_bytes
        start, stop = (0, size) if part is None else (part.start, part.stop)
        if not 0 <= start < stop <= size:
            raise InvalidTransferError("part", f"bytes {start} to {stop} of a block of {size}")
        if any(num_bytes != start for num_bytes in pushed[first_index:end]):
            raise InvalidTransferError(
                "first_index",
                f"blocks {first_index} to {end}, byte {start}: pushed before, or not up to there",
            )
        pushed[first_index:end] = [stop] * len(source_block_ids)
        if start == 0:
            self._num_begun += len(source_block_ids)
        if stop == size:
            self.num_blocks += len(source_block_ids)

    def wrote(self, run: PushedRun) -> list[tuple[int, int]]:
        """Note that a run that was added is in place.

        Returns:
            Blocks of which now all parts are: (position of the first, how many).
        """
        if run.part is None:
            return [(run.first_index, run.num_blocks)]
        size, written = self._sources[run.group].block_bytes, self._written[run.group]
        complete: list[tuple[int, int]] = []
        for position in range(run.first_index, run.first_index + run.num_blocks):
            written[position] += len(run.part)
            if written[position] < size:
                continue
            if complete and sum(complete[-1]) == position:
                complete[-1] = complete[-1][0], complete[-1][1] + 1
            else:
                complete.append((position, 1))
        return complete
