"""The binding, through the C calling convention, against a library over host memory."""

from __future__ import annotations

import pytest
import torch

from engine.backends.cuda.cublaslt import Algorithm, Product, ProductShape
from engine.backends.cuda.errors import ProductError
from engine.backends.cuda.product_choice import adds_in_order
from tests.support.fake_cublaslt import FakeAlgorithm, FakeCublasLt

ONE, SPLIT, LARGE = FakeAlgorithm(16), FakeAlgorithm(32, split_k=3), FakeAlgorithm(8, workspace_bytes=1024)


def create(
    fake: FakeCublasLt, out: int, k: int, dtype: torch.dtype, out_dtype: torch.dtype, bias: int = 0
) -> Product:
    return Product(fake.library, 1, ProductShape(out, k, dtype, out_dtype, bool(bias)), bias)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("out_dtype", [None, torch.float32])
@pytest.mark.parametrize("biased", [False, True])
def test_launches_multiply(dtype: torch.dtype, out_dtype: torch.dtype | None, biased: bool) -> None:
    fake = FakeCublasLt(lambda rows: [ONE])
    out_dtype = out_dtype or dtype
    x, weight, bias = torch.randn(5, 48).to(dtype), torch.randn(7, 48).to(dtype), torch.randn(7).to(out_dtype)
    product = create(fake, 7, 48, dtype, out_dtype, bias.data_ptr() if biased else 0)
    (algorithm,) = product.algorithms(5, 4)
    out = torch.full((5, 7), torch.nan, dtype=out_dtype)
    product.launch(algorithm, 5, x.data_ptr(), weight.data_ptr(), out.data_ptr(), 0, 0)
    wanted = x.float() @ weight.float().t() + (bias.float() if biased else 0)
    torch.testing.assert_close(out.float(), wanted, rtol=1e-2, atol=1e-2)


def test_proposals_are_filtered_and_described() -> None:
    fake = FakeCublasLt(lambda rows: [SPLIT, LARGE, ONE] if rows > 1 else [])
    product = create(fake, 7, 48, torch.bfloat16, torch.bfloat16)

    def pieces(limit: int) -> list[int]:
        return [product.config(algorithm).tile for algorithm in product.algorithms(2, limit)]

    assert pieces(8) == [8, 16]
    assert pieces(1) == [8]
    assert product.algorithms(1, 8) == []
    assert product.algorithms(2, 8)[0].workspace_bytes == 1024
    fake.proposes_splits = True
    (split, *_) = product.algorithms(2, 8)
    assert product.config(split).split_k == 3
    assert not adds_in_order(product.config(split))


def test_an_algorithm_can_be_checked_for_other_rows() -> None:
    fake = FakeCublasLt(lambda rows: [FakeAlgorithm(16, workspace_bytes=64, most_rows=10)])
    product = create(fake, 7, 48, torch.bfloat16, torch.bfloat16)
    (algorithm,) = product.algorithms(2, 8)
    assert product.checked(Algorithm(algorithm.data, 0), 10) == algorithm
    assert product.checked(algorithm, 11) is None


def test_a_refusal_is_an_error() -> None:
    fake = FakeCublasLt(lambda rows: [ONE])
    fake.library.functions["cublasLtMatmul"] = lambda *_: 13
    product = create(fake, 7, 48, torch.bfloat16, torch.bfloat16)
    (algorithm,) = product.algorithms(2, 8)
    with pytest.raises(ProductError, match="cublasLtMatmul returned status 13"):
        product.launch(algorithm, 2, 16, 16, 16, 0, 0)
