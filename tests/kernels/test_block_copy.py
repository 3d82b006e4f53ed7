"""block_copy: exactly the bytes asked for, and no others."""

import pytest
import torch

from engine.backends.cuda import errors
from engine.backends.cuda.block_copy import block_copy


def pool(blocks: int, heads: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.randn(blocks, 3, 2, heads, 16, 64, device="cuda").to(dtype)


def ids(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32, device="cuda")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_copy_within_a_pool(dtype: torch.dtype) -> None:
    blocks = pool(40, 3, dtype)
    expected = blocks.clone()
    expected[[7, 39, 0]] = blocks[[1, 2, 38]]
    block_copy(blocks, blocks, ids(1, 2, 38, -1), ids(7, 39, 0, 5))
    assert torch.equal(blocks, expected)


@pytest.mark.sanitize
def test_gather_and_scatter() -> None:
    blocks, order = pool(40, 3), torch.randperm(40)[:25]
    staged = torch.full_like(blocks[:25], torch.nan)
    block_copy(blocks, staged, order.int().cuda(), None)
    assert torch.equal(staged, blocks[order.cuda()])
    target = pool(40, 3)
    expected = target.clone()
    expected[order.cuda()] = staged
    block_copy(staged, target, None, order.int().cuda())
    assert torch.equal(target, expected)


@pytest.mark.sanitize
def test_slices_by_head() -> None:
    whole, half = pool(12, 8), pool(9, 4)
    expected = half.clone()
    expected[[3, 5]] = whole[[11, 0]][:, :, :, 4:8]
    block_copy(whole, half, ids(11, 0), ids(3, 5), src_heads=slice(4, 8))
    assert torch.equal(half, expected)
    back = whole.clone()
    back[[2, 4], :, :, 1:3] = half[[3, 8], :, :, 2:4]
    block_copy(half, whole, ids(3, 8), ids(2, 4), src_heads=slice(2, 4), dst_heads=slice(1, 3))
    assert torch.equal(whole, back)


def test_refuses_unlike_pools() -> None:
    with pytest.raises(errors.UnsupportedShapeError, match="unlike"):
        block_copy(pool(2, 2), torch.zeros(2, 3, 2, 2, 16, 128, device="cuda").bfloat16(), ids(0), ids(1))
    with pytest.raises(errors.UnsupportedShapeError, match="heads"):
        block_copy(pool(2, 4), pool(2, 2), ids(0), ids(1))
