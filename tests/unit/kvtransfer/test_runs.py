"""Runs of blocks, as pushed and as copied."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvtransfer.runs import CopyRun, PushedRun, merge_runs


@pytest.mark.parametrize(
    ("targets", "sources", "runs"),
    [
        ([], [], []),
        ([5], [9], [CopyRun(5, 9, 1)]),
        ([5, 6, 7], [1, 2, 3], [CopyRun(5, 1, 3)]),
        ([7, 6, 5], [3, 2, 1], [CopyRun(5, 1, 3)]),
        ([5, 6, 8], [1, 2, 3], [CopyRun(5, 1, 2), CopyRun(8, 3, 1)]),
        ([5, 6], [2, 1], [CopyRun(6, 1, 1), CopyRun(5, 2, 1)]),
        ([4, 9, 5], [1, 7, 2], [CopyRun(4, 1, 2), CopyRun(9, 7, 1)]),
    ],
)
def test_neighbours_on_both_sides_become_one_copy(
    targets: list[int], sources: list[int], runs: list[CopyRun]
) -> None:
    assert merge_runs(targets, sources) == runs


@given(
    st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20)), unique_by=(lambda p: p[0], lambda p: p[1]))
)
def test_merging_copies_each_block_once_and_cannot_be_merged_further(pairs: list[tuple[int, int]]) -> None:
    runs = merge_runs([target for target, _ in pairs], [source for _, source in pairs])
    copied = [(run.target + i, run.source + i) for run in runs for i in range(run.num_blocks)]
    assert sorted(copied) == sorted(pairs)
    ends = {(run.target + run.num_blocks, run.source + run.num_blocks) for run in runs}
    assert not ends & {(run.target, run.source) for run in runs}


@given(st.integers(1, 40), st.integers(1, 50))
def test_cutting_keeps_positions_and_sources(num_blocks: int, size: int) -> None:
    run = PushedRun(0, 100, tuple(range(7, 7 + num_blocks)), None)
    parts = run.cut(size)
    assert all(1 <= part.num_blocks <= size for part in parts)
    placed = [(p.first_index + i, block) for p in parts for i, block in enumerate(p.source_block_ids)]
    assert placed == [(100 + i, 7 + i) for i in range(num_blocks)]
