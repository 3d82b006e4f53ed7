"""Products of few rows against float64; what a row gets does not depend on the others."""

from __future__ import annotations

import math

import pytest
import torch

from engine.backends.cuda import loader
from engine.backends.cuda.errors import UnsupportedShapeError
from engine.backends.cuda.linear_rows import MAX_ROWS, layout_of, linear_rows
from engine.backends.cuda.norms import rms_norm

SMALL = pytest.param((97, 256), marks=pytest.mark.sanitize)
SHAPES = [(6144, 4096), (4096, 14336), (28672, 1024), SMALL, (40, 8), (1000, 1544), (16, 576)]


def random(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.randn(*shape, device="cuda").to(dtype)


def error_of(out: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((out.double() - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("rows", [1, 2, 5, 8, 9, MAX_ROWS])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_matches_float64(shape: tuple[int, int], rows: int, dtype: torch.dtype) -> None:
    n, k = shape
    x, weight, bias = random(rows, k, dtype=dtype), random(n, k, dtype=dtype), random(n, dtype=dtype)
    if layout_of(rows, n, k, loader.facts()) is None:
        with pytest.raises(UnsupportedShapeError, match="shared memory"):
            linear_rows(x, weight, bias)
        return
    wanted = x.double() @ weight.double().t()
    assert error_of(linear_rows(x, weight, bias), wanted + bias.double()) < 4e-3
    out = torch.full((rows, n), math.nan, device="cuda")
    assert error_of(linear_rows(x, weight, None, out), wanted) < 1e-5


@pytest.mark.parametrize("shape", [(4096, 4096), (28672, 4096)], ids=str)
def test_a_row_is_the_same_alone_and_among_others(shape: tuple[int, int]) -> None:
    n, k = shape
    x, weight = random(MAX_ROWS, k), random(n, k)
    together = linear_rows(x, weight, None)
    assert torch.equal(linear_rows(x[:8].clone(), weight, None), together[:8])
    for row in range(MAX_ROWS):
        assert torch.equal(linear_rows(x[row : row + 1].clone(), weight, None)[0], together[row])


def test_waits_for_the_kernel_ahead() -> None:
    """A chain of launches that may overlap, captured: every link reads what the one before wrote."""
    weights = [random(4096, 4096) / 64 for _ in range(6)]
    scale, x = torch.ones(4096, device="cuda", dtype=torch.bfloat16), random(2, 4096)

    def chain(x: torch.Tensor) -> torch.Tensor:
        for weight in weights:
            x = linear_rows(rms_norm(x, scale, 1e-5), weight, None)
        return x

    chain(x)
    torch.cuda.synchronize()
    steps = x
    for weight in weights:
        steps = rms_norm(steps, scale, 1e-5)
        torch.cuda.synchronize()
        steps = linear_rows(steps, weight, None)
        torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = chain(x)
    for _ in range(20):
        out.fill_(math.nan)
        graph.replay()
        torch.cuda.synchronize()
        assert torch.equal(out, steps)
