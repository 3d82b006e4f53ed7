"""Blocks on their way: what steps load into them from the host is not there until they are over."""

from __future__ import annotations

from collections.abc import Iterable

from engine.kv.layout import CacheGroup
from engine.request import Request


class Arrivals:
    """Blocks that steps under way bring, over all cache groups."""

    def __init__(self, groups: tuple[CacheGroup, ...]) -> None:
        self._groups = groups
        # (Group, block) -> the step that brings it.
        self._steps: dict[tuple[int, int], int] = {}

    def expect(self, group: int, block_ids: Iterable[int], step: int) -> None:
        """Note blocks that a step will bring."""
        self._steps.update(((group, block_id), step) for block_id in block_ids)

    def end_step(self, step: int) -> None:
        """A step is over, and so are all before it."""
        if self._steps:
            self._steps = {block: until for block, until in self._steps.items() if until > step}

    def spoilt_by(self, step: int) -> list[tuple[int, int]]:
        """Return (group, block) of what does not come if this step and those behind it failed."""
        return [block for block, until in self._steps.items() if until >= step]

    def num_ready_tokens(self, request: Request) -> int:
        """Return the leading computed tokens of a request that are in their blocks already."""
        ready = request.num_computed_tokens
        if self._steps:
            for index, (group, ids) in enumerate(zip(self._groups, request.block_ids, strict=True)):
                for position, block_id in enumerate(ids[: group.num_blocks_for(ready)]):
                    if (index, block_id) in self._steps:
                        ready = min(ready, position * group.block_size)
                        break
        return ready
