"""Runs of blocks: as they are pushed, and as they are copied."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple


@dataclass(frozen=True, slots=True)
class PushedRun:
    """Blocks of one push: position `first_index + i` comes from `source_block_ids[i]`.

    Attributes:
        ready: returns once the source blocks are computed; None: they are.
        part: which bytes of each block; None: all.
    """

    group: int
    first_index: int
    source_block_ids: tuple[int, ...]
    ready: Callable[[], object] | None
    part: range | None = None

    @property
    def num_blocks(self) -> int:
        """Blocks of the run."""
        return len(self.source_block_ids)

    def between(self, start: int, end: int) -> PushedRun:
        """Get the blocks from `start` to before `end`."""
        ids = self.source_block_ids[start:end]
        return PushedRun(self.group, self.first_index + start, ids, self.ready, self.part)

    def cut(self, size: int) -> list[PushedRun]:
        """Cut into parts of `size` blocks; the last may be smaller, none is empty."""
        return [self.between(start, start + size) for start in range(0, self.num_blocks, size)]


class CopyRun(NamedTuple):
    """`num_blocks` blocks from `source` on go to `target` on."""

    target: int
    source: int
    num_blocks: int


def merge_runs(target_block_ids: Sequence[int], source_block_ids: Sequence[int]) -> list[CopyRun]:
    """Join pairs of blocks into the longest runs; their order does not matter.

    Returns:
        Runs by rising source; together each pair exactly once.
    """
    runs: list[CopyRun] = []
    first_source = first_target = num_blocks = 0
    for source, target in sorted(zip(source_block_ids, target_block_ids, strict=True)):
        if num_blocks and source - first_source == num_blocks == target - first_target:
            num_blocks += 1
            continue
        if num_blocks:
            runs.append(CopyRun(first_target, first_source, num_blocks))
        first_source, first_target, num_blocks = source, target, 1
    if num_blocks:
        runs.append(CopyRun(first_target, first_source, num_blocks))
    return runs
