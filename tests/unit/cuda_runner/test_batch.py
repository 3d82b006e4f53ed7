"""How a step is laid out for the device, which graph sizes there are, which copies may run at once."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace

import numpy as np

from engine.request import Request
from engine.runner.cuda.batch import Batch, build_batch, decodes_first, shape_of
from engine.runner.cuda.runner import independent_runs
from engine.runner.cuda.shapes import ShapeLadder, StepShape, chunk_sizes, decode_sizes
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
    batch = build_batch(rows, 3, [4, 2, 0, 1, 3], shape_of(rows, 3))
    assert batch.tokens.tolist() == [107, 0, 103, 104, 105, 106, 107, 108, 109, 109, 110, 111]
    assert batch.rows["slot"].tolist() == [4, 2, 0, 1, 3]
    assert batch.rows["start"].tolist() == [7, 5, 3, 4, 9]
    assert batch.rows["tokens"].tolist() == [1, 1, 1, 6, 3]
    assert batch.rows["first"].tolist() == [0, 1, 2, 3, 9]
    assert batch.rows["pending"].tolist() == [0, 1, 0, 0, 0]
    assert batch.rows["decodes"].tolist() == [1, 1, 1, 0, 0]
    assert batch.rows["chunk_first"].tolist() == [3, 3, 3, 3, 9]
    assert batch.shape == StepShape(5, 3, 12, 3, has_chunks=True)
    assert batch.context_tokens == 8 + 6 + 4
    assert [row.request.request_id for row in batch.sampled] == ["8", "5", "12"]
    assert batch.sample_tokens.tolist() == [0, 1, 11]
    assert batch.sample_slots.tolist() == [4, 2, 3]
    assert batch.sample_positions.tolist() == [8, 6, 12]
    assert batch.wanted.tolist() == [0, 1, 11]


def test_empty_places_fill_a_padded_step() -> None:
    shape = StepShape(4, 4, 4, 4, has_chunks=False)
    batch = build_batch([create_row(8, 7, 1, True), create_row(3, 2, 1, True)], 2, [5, 1], shape)
    assert batch.rows["slot"].tolist() == [5, 1, -1, -1]
    assert batch.rows["tokens"].tolist() == [1, 1, 0, 2]
    assert batch.rows["first"].tolist() == [0, 1, 2, 2]
    assert batch.rows["decodes"].tolist() == [1, 1, 0, 0]
    assert batch.tokens.tolist() == [107, 102, 0, 0]
    assert batch.num_rows == 2
    assert batch.sample_slots.tolist() == [5, 1]
    assert batch.wanted.tolist() == [0, 1, 0, 0]


def test_ladders_end_at_the_largest_step() -> None:
    for largest in (1, 2, 3, 8, 9, 16, 17, 64, 65, 200, 256, 2048, 3000):
        for sizes in (decode_sizes(largest), chunk_sizes(largest)):
            assert sizes[-1] == largest
            assert list(sizes) == sorted(set(sizes))
    assert len(decode_sizes(256)) < 30
    assert len(chunk_sizes(2048)) < 40


def step_inputs(batch: Batch) -> tuple[list[int], list[tuple[int, int]], list[int]]:
    """As cuda/step_inputs.cu: decode_lens, tokens that cu_seqlens_q gives each row, rows of tokens."""
    rows, owners = batch.rows, [-1] * batch.shape.num_tokens
    lens = [int(row["start"] + row["tokens"]) if row["decodes"] else 0 for row in rows]
    last = rows[-1]
    end = last["chunk_first"] + (0 if last["slot"] < 0 or last["decodes"] else last["tokens"])
    bounds = [*rows["chunk_first"].tolist(), int(end)]
    for index, row in enumerate(rows):
        for at in range(row["first"], row["first"] + row["tokens"]):
            assert owners[at] == -1, "a token of two rows"
            owners[at] = index if row["slot"] >= 0 else len(rows)
    return lens, list(itertools.pairwise(bounds)), owners


def test_every_step_fits_its_graph() -> None:
    """Each token has one row, each row one kind of attention, and logits are a selection of the tokens."""
    draw = random.Random(4)
    ladder = ShapeLadder(max_rows=20, max_tokens=100)
    for _ in range(300):
        num_decodes, num_chunks = draw.randint(0, 12), draw.randint(0, 8)
        rows = [create_row(30, draw.randrange(30), 1, True) for _ in range(num_decodes)]
        for _ in range(num_chunks):
            length = draw.randint(1, 12)
            rows.append(create_row(30, 0, length, draw.random() < 0.5))
        if not rows:
            continue
        exact = shape_of(rows, num_decodes)
        shape = ladder.padded(exact)
        if shape is None:
            assert max(exact.num_tokens, exact.num_wanted) > 80
            continue
        batch = build_batch(rows, num_decodes, list(range(len(rows))), shape)
        assert (len(batch.rows), len(batch.tokens), len(batch.wanted)) == (
            shape.num_rows,
            shape.num_tokens,
            shape.num_wanted,
        )
        lens, bounds, owners = step_inputs(batch)
        assert -1 not in owners
        assert [end - begin for begin, end in bounds] == [
            row.num_tokens if num_decodes <= index < len(rows) else 0
            for index, row in enumerate([*rows, *[rows[0]] * (shape.num_rows - len(rows))])
        ]
        for index, (begin, end) in enumerate(bounds):
            assert set(owners[begin:end]) <= {index}
        assert [place for place, length in enumerate(lens) if length] == list(range(num_decodes))
        assert num_decodes <= shape.num_decodes <= shape.num_tokens
        assert shape.has_chunks == (num_chunks > 0)
        assert shape.num_wanted < shape.num_tokens or not shape.has_chunks
        assert batch.wanted.tolist()[: len(batch.sampled)] == batch.sample_tokens.tolist()
        assert batch.wanted.max(initial=0) < exact.num_tokens


def test_what_is_captured_first() -> None:
    first = ShapeLadder(max_rows=256, max_tokens=2048).first
    assert first[0] == StepShape(257, 256, 2048, 256, has_chunks=True)
    assert [shape.num_rows for shape in first[1:]] == list(reversed(decode_sizes(256)))
    assert not any(shape.has_chunks for shape in ShapeLadder(max_rows=256, max_tokens=256).first)


def test_what_is_captured_in_idle_time() -> None:
    ladder = ShapeLadder(max_rows=256, max_tokens=2048)
    soon = ladder.soon
    assert len(soon) < 32
    assert all(ladder.padded(shape) == shape for shape in soon)
    assert StepShape(257, 0, 2048, 0, has_chunks=True) in soon, "the middle of a long prompt"
    assert StepShape(257, 256, 384, 256, has_chunks=True) in soon
    assert all(shape.num_wanted < 1 for shape in ShapeLadder(max_rows=1, max_tokens=1).soon)


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


def test_a_shape_serves_steps_that_it_has_room_for() -> None:
    crowded = StepShape(257, 256, 512, 256, has_chunks=True)
    for other in (
        StepShape(257, 256, 512, 16, has_chunks=True),
        StepShape(257, 0, 480, 16, has_chunks=True),
        StepShape(257, 64, 64, 0, has_chunks=True),
    ):
        assert crowded.serves(other)
        assert not other.serves(crowded)
    for other in (
        replace(crowded, tells_layers=True),
        replace(crowded, num_tokens=513),
        replace(crowded, num_wanted=257),
        replace(crowded, num_rows=258),
        StepShape(8, 8, 8, 8, has_chunks=False),
    ):
        assert not crowded.serves(other)
    without_decodes = replace(crowded, num_decodes=0)
    assert not without_decodes.serves(crowded)


def test_steps_that_tell_of_layers_have_shapes_of_their_own() -> None:
    ladder = ShapeLadder(256, 2048)
    asked = StepShape(3, 1, 500, 2, has_chunks=True, tells_layers=True)
    padded = ladder.padded(asked)
    assert padded is not None
    assert padded.tells_layers
    assert padded.serves(asked)
    assert ladder.padded(replace(asked, tells_layers=False)) == replace(padded, tells_layers=False)
