"""Which blocks of `hold_blocks` requests have been reported as final."""

from __future__ import annotations

from engine.events import BlocksFilled
from engine.kv.layout import CacheGroup
from engine.request import Request


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

    def forget(self, request: Request) -> None:
        """Drop what is known of a request that has ended."""
        self._reported.pop(request.request_id, None)
