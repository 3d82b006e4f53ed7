"""Which kernel takes products of few rows."""

from __future__ import annotations

from engine.backends.cuda.linear_rows import MAX_ROWS, rows_that_pay, tiles_of


def test_large_weights_are_left_to_cublas() -> None:
    assert rows_that_pay(1024, 2048) == MAX_ROWS
    assert rows_that_pay(4096, 4096) == 8
    assert rows_that_pay(28672, 4096) == 0
    assert tiles_of(1, 28672, 132) == 2
    assert tiles_of(1, 4096, 132) == 1
