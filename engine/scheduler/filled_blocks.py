"""Which blocks of `hold_blocks` requests have been reported as final, or as on their way there."""

from __future__ import annotations

from collections.abc import Sequence

from engine.events import BlocksFilled, BlocksFilling, FilledPart
from engine.kv.layout import CacheGroup
from engine.request import Request
from engine.step import LayersWritten, ScheduledRow


class FilledBlocks:
    """Reports each block of a request once, in order, a run of blocks an event."""

    def __init__(self, groups: tuple[CacheGroup, ...]) -> None:
        self._groups = groups
        self._reported: dict[str, list[int]] = {}

    def advance(self, request: Request, num_tokens: int) -> list[BlocksFilled]:
        """Return the blocks that became final: the full ones, and with the last token the partial one.

        Args:
            num_tokens: leading tokens whose KV is complete.
        """
        reported = self._reported.setdefault(request.request_id, [0] * len(self._groups))
        events = []
        for index, group in enumerate(self._groups):
            done = num_tokens == request.num_tokens
            end = group.num_blocks_for(num_tokens) if done else num_tokens // group.block_size
            first = reported[index]
            if end > first:
                blocks = tuple(request.block_ids[index][first:end])
                events.append(BlocksFilled(request.request_id, index, first, blocks))
                reported[index] = end
        return events

    def ahead(self, rows: Sequence[ScheduledRow], layers: Sequence[LayersWritten]) -> list[BlocksFilling]:
        """Return the blocks that a step under way fills to the end of requests."""
        # Only a model with one cache group has moments for its layers.
        (group,) = self._groups
        layer_bytes = group.block_bytes // len(group.layer_ids)
        parts = tuple(FilledPart(moment.num_layers * layer_bytes, moment.wait) for moment in layers)
        events = []
        for row in rows:
            if row.is_told_early:
                request_id, first = row.request.request_id, row.start // group.block_size
                end = group.num_blocks_for(row.start + row.num_tokens)
                blocks = tuple(row.request.block_ids[0][first:end])
                events.append(BlocksFilling(request_id, 0, first, blocks, parts))
        return events

    def forget(self, request: Request) -> None:
        """Drop what is known of a request that has ended."""
        self._reported.pop(request.request_id, None)
