"""How products are cut into numbers of rows, and which kernel takes them."""

from __future__ import annotations

import pytest
import torch

from engine.backends.cuda import linear as linear_module
from engine.backends.cuda.linear import (
    _TRIED_ROWS,
    REFERENCE_ROWS,
    CudaLinear,
    _operands,
    cut,
    proven_sizes,
)
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
    weight, bias, x = torch.randn(7, 5), torch.randn(7), torch.randn(300, 5)
    for rows in (1, 37, 256, 300):
        linear = CudaLinear(weight, bias, 0, True)
        torch.testing.assert_close(linear.forward(x[:rows]), x[:rows] @ weight.t() + bias)


def sums(x: torch.Tensor, weight: torch.Tensor, piece: int) -> torch.Tensor:
    """x weight^T, added up in float32 in pieces of k, one after the other, and rounded to bf16."""
    total = torch.zeros(x.shape[0], weight.shape[0])
    for start in range(0, x.shape[1], piece):
        part = x[:, start : start + piece].double() @ weight[:, start : start + piece].double().t()
        total += part.float()
    return total.bfloat16()


def differing(cancelling: bool) -> float:
    """Share of sums that two orders of additions tell apart."""
    operands = _operands(64, 768, torch.bfloat16, torch.Generator().manual_seed(3), cancelling)
    x, weight, _ = operands
    return float((sums(x[:16], weight, 16) != sums(x[:16], weight, 64)).float().mean())


def test_operands_tell_orders_of_additions_apart() -> None:
    assert differing(cancelling=True) > 0.9
    assert differing(cancelling=False) < 0.05, "else plain random numbers would do"


def test_cancelling_sums_are_rounding_alone() -> None:
    for in_features in (112, 113):
        generator = torch.Generator().manual_seed(4)
        x, weight, bias = _operands(8, in_features, torch.bfloat16, generator, cancelling=True)
        assert float((x.double() @ weight.double().t()).abs().max()) < 1e-12
        assert not bias.any()
        assert x.any()


def test_sizes_whose_sums_run_in_another_order_are_not_proven(monkeypatch: pytest.MonkeyPatch) -> None:
    """As cuBLAS did with one row: a product of few rows adds up in an order of its own."""

    def product(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        total = sums(x, weight, 16 if x.shape[0] in (1, 48) else 32)
        return total if bias is None else total + bias

    monkeypatch.setattr(linear_module, "_product", product)
    for has_bias in (False, True):
        sizes = proven_sizes.__wrapped__(16, 96, torch.bfloat16, torch.device("cpu"), has_bias)
        assert set(_TRIED_ROWS) - set(sizes) == {1, 48}
        assert REFERENCE_ROWS in sizes


def test_a_sum_rounded_before_its_bias_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def product(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        exact = (x.double() @ weight.double().t()).float()
        assert bias is not None
        return exact.bfloat16() + bias if x.shape[0] == 1 else (exact + bias.float()).bfloat16()

    monkeypatch.setattr(linear_module, "_product", product)
    sizes = proven_sizes.__wrapped__(64, 96, torch.bfloat16, torch.device("cpu"), True)
    assert set(_TRIED_ROWS) - set(sizes) == {1}


def test_large_weights_are_left_to_cublas() -> None:
    assert rows_that_pay(1024, 2048) == MAX_ROWS
    assert rows_that_pay(4096, 4096) == 8
    assert rows_that_pay(28672, 4096) == 0
    assert tiles_of(1, 28672, 132) == 2
    assert tiles_of(1, 4096, 132) == 1
