"""How products are cut into numbers of rows, and which kernel takes them."""

from __future__ import annotations

import torch

from engine.backends.cuda.linear import REFERENCE_ROWS, CudaLinear, Mode, cut
from engine.backends.cuda.linear_rows import MAX_ROWS, rows_that_pay, tiles_of


def test_parts_have_allowed_sizes_and_hold_every_row() -> None:
    sizes = (4, 16, 64)
    for rows in (1, 4, 5, 16, 17, 63, 64, 65, 68, 128, 200):
        x = torch.randn(rows, 3)
        parts = cut(x, sizes)
        assert all(part.shape[0] in sizes for part in parts)
        assert torch.equal(torch.cat(parts)[:rows], x)
        assert not torch.cat(parts)[rows:].any()
        assert sum(part.shape[0] for part in parts) - rows < 64


def test_products_by_parts_are_the_product() -> None:
    weight, bias, x = torch.randn(7, 5), torch.randn(7), torch.randn(37, 5)
    linear = CudaLinear(weight, bias, 0, (2, 8, 16))
    torch.testing.assert_close(linear.forward(x), x @ weight.t() + bias)


def test_weights_without_memory_are_not_tried() -> None:
    weight = torch.empty(8, 8, device="meta")
    assert CudaLinear.create(weight, None, Mode.INVARIANT).sizes == (REFERENCE_ROWS,)


def test_large_weights_are_left_to_cublas() -> None:
    assert rows_that_pay(1024, 2048) == MAX_ROWS
    assert rows_that_pay(4096, 4096) == 8
    assert rows_that_pay(28672, 4096) == 0
    assert tiles_of(1, 28672, 132) == 2
    assert tiles_of(1, 4096, 132) == 1
