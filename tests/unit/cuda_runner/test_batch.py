"""How a step is laid out for the device, which graph sizes there are, which copies may run at once."""

from __future__ import annotations

import random

import numpy as np

from engine.request import Request
from engine.runner.cuda.batch import build_batch, decodes_first
from engine.runner.cuda.graphs import ladder
from engine.runner.cuda.runner import independent_runs
from engine.sampling_params import SamplingParams
from engine.step import BlockCopy, ScheduledRow


def create_row(length: int, start: int, num_tokens: int, sample: bool, pending: bool = False) -> ScheduledRow:
    request = Request(f"{length}", list(range(100, 100 + length)), length, SamplingParams())
    return ScheduledRow(request, start, num_tokens, sample, pending)


def test_decodes_then_chunks() -> None:
    rows = [
        create_row(8, 7, 1, True),
        create_row(5, 5, 1, True, pending=True),
        create_row(9, 3, 1, False),
        create_row(20, 4, 6, False),
        create_row(12, 9, 3, True),
    ]
    batch = build_batch(rows, 3, [4, 2, 0, 1, 3], len(rows))
    assert batch.tokens.tolist() == [107, 0, 103, 104, 105, 106, 107, 108, 109, 109, 110, 111]
    assert batch.rows["slot"].tolist() == [4, 2, 0, 1, 3]
    assert batch.rows["start"].tolist() == [7, 5, 3, 4, 9]
    assert batch.rows["tokens"].tolist() == [1, 1, 1, 6, 3]
    assert batch.rows["first"].tolist() == [0, 1, 2, 3, 9]
    assert batch.rows["pending"].tolist() == [0, 1, 0, 0, 0]
    assert (batch.num_rows, batch.num_decodes, batch.is_decode) == (5, 3, False)
    assert batch.context_tokens == 8 + 6 + 4
    assert [row.request.request_id for row in batch.sampled] == ["8", "5", "12"]
    assert batch.sample_tokens.tolist() == [0, 1, 11]
    assert batch.sample_slots.tolist() == [4, 2, 3]
    assert batch.sample_positions.tolist() == [8, 6, 12]


def test_empty_places_fill_a_padded_step() -> None:
    batch = build_batch([create_row(8, 7, 1, True), create_row(3, 2, 1, True)], 2, [5, 1], 4)
    assert batch.rows["slot"].tolist() == [5, 1, -1, -1]
    assert batch.rows["tokens"].tolist() == [1, 1, 1, 1]
    assert batch.rows["first"].tolist() == [0, 1, 2, 3]
    assert batch.tokens.tolist() == [107, 102, 0, 0]
    assert (batch.num_rows, batch.num_decodes, batch.is_decode) == (2, 4, True)
    assert batch.sample_slots.tolist() == [5, 1]


def test_ladder_ends_at_the_largest_batch() -> None:
    for largest in (1, 2, 3, 8, 9, 64, 65, 200, 256):
        sizes = ladder(largest)
        assert sizes[-1] == largest
        assert list(sizes) == sorted(set(sizes))
    assert len(ladder(256)) < 30


def test_copies_run_as_if_one_after_the_other() -> None:
    draw = random.Random(2)
    for _ in range(300):
        copies = [BlockCopy(0, *draw.sample(range(8), 2)) for _ in range(draw.randint(0, 7))]
        wanted = list(range(8))
        for copy in copies:
            wanted[copy.dst] = wanted[copy.src]
        blocks = np.arange(8)
        for run in independent_runs(copies):
            assert len({copy.dst for copy in run}) == len(run)
            blocks[[copy.dst for copy in run]] = blocks[[copy.src for copy in run]]
        assert blocks.tolist() == wanted
    assert len(independent_runs([BlockCopy(0, 0, 1), BlockCopy(0, 2, 3), BlockCopy(0, 0, 4)])) == 1


def test_which_rows_attention_decode_serves() -> None:
    rows = [
        create_row(8, 7, 1, True),  # the last token of a prompt
        create_row(5, 5, 1, True, pending=True),
        create_row(9, 3, 1, False),
        create_row(20, 4, 6, False),
    ]
    assert decodes_first(rows, prompts_apart=False) == (rows, 3)
    ordered, count = decodes_first(rows, prompts_apart=True)
    assert [row.start for row in ordered] == [5, 7, 3, 4]
    assert count == 1
