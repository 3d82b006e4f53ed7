"""After which layers a step says that their KV is written."""

from __future__ import annotations

import pytest

from engine.backends.cuda.layer_marks import marked_layers


@pytest.mark.parametrize(
    ("num_layers", "marks"),
    [(1, (1,)), (2, (1, 2)), (28, (21, 26, 28)), (30, (22, 28, 30)), (32, (24, 30, 32))],
)
def test_marks_leave_little_for_the_end(num_layers: int, marks: tuple[int, ...]) -> None:
    assert marked_layers(num_layers) == marks
