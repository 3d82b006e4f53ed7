"""Runs of blocks: as they are pushed, and as they are copied."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass


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


@dataclass(frozen=True, slots=True)
class CopyRun:
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
    for source, target in sorted(zip(source_block_ids, target_block_ids, strict=True)):
        if runs:
            last = runs[-1]
            if (source, target) == (last.source + last.num_blocks, last.target + last.num_blocks):
                runs[-1] = CopyRun(last.target, last.source, last.num_blocks + 1)
                continue
        runs.append(CopyRun(target, source, 1))
    return runs
