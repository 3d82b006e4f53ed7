"""rope_kv_store against float64, into a poisoned pool."""

import pytest
import torch

from engine.backends.base import QKNorm, RopeTable
from engine.backends.cuda.rope_kv_store import rope_kv_store


def rotated(x: torch.Tensor, angles: torch.Tensor, rotary_dim: int, interleaved: bool) -> torch.Tensor:
    """x [T, H, D], angles [T, rotary_dim / 2]; float64."""
    turned, rest = x[..., :rotary_dim], x[..., rotary_dim:]
    half = rotary_dim // 2
    a, b = (turned[..., 0::2], turned[..., 1::2]) if interleaved else (turned[..., :half], turned[..., half:])
    cos, sin = angles.cos()[:, None], angles.sin()[:, None]
    first, second = a * cos - b * sin, b * cos + a * sin
    turned = torch.stack((first, second), -1).flatten(-2) if interleaved else torch.cat((first, second), -1)
    return torch.cat((turned, rest), -1)


@pytest.mark.parametrize(
    "tokens", [pytest.param(45, marks=pytest.mark.sanitize), 4099]
)  # one token a block, several
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize(
    ("head_dim", "rotary_dim", "heads", "kv_heads", "block_size", "interleaved"),
    [(128, 128, 32, 8, 64, False), (64, 64, 9, 3, 16, False), (64, 32, 4, 4, 32, True),
     (96, 96, 6, 2, 64, False), (128, 16, 2, 1, 64, False),
     (80, 32, 5, 5, 16, False), (256, 64, 8, 1, 128, False), (256, 256, 3, 1, 64, True)],
)  # fmt: skip
def test_matches_float64(
    head_dim: int, rotary_dim: int, heads: int, kv_heads: int, block_size: int, interleaved: bool,
    normed: bool, dtype: torch.dtype, tokens: int,
) -> None:  # fmt: skip
    layers, layer, blocks = 3, 1, -(-tokens // block_size) + 3
    pool = torch.full(
        (blocks, layers, 2, kv_heads, block_size, head_dim), torch.nan, dtype=dtype, device="cuda"
    )
    qkv = torch.randn(tokens, (heads + 2 * kv_heads) * head_dim, dtype=dtype, device="cuda")
    positions = torch.randint(0, 5000, (tokens,), dtype=torch.int32, device="cuda")
    slots = torch.randperm(blocks * block_size, device="cuda")[:tokens].int()
    slots[7] = -1
    frequencies = 10000.0 ** (-torch.arange(0, rotary_dim, 2, device="cuda").double() / rotary_dim)
    angles = torch.arange(5000, device="cuda").double()[:, None] * frequencies
    rope = RopeTable(torch.cat((angles.cos(), angles.sin()), -1).float().contiguous(), rotary_dim)
    norm = None
    if normed:
        norm = QKNorm(*(torch.randn(head_dim, dtype=dtype, device="cuda") for _ in range(2)), eps=1e-6)
    torch.cuda.synchronize()  # the kernel right before may write qkv, but not the table
    queries = rope_kv_store(qkv, positions, slots, pool, layer, rope, norm, interleaved=interleaved)

    q, k, v = qkv.double().view(tokens, -1, head_dim).split((heads, kv_heads, kv_heads), dim=1)
    if norm:
        q = q / (q.square().mean(-1, keepdim=True) + 1e-6).sqrt() * norm.query.double()
        k = k / (k.square().mean(-1, keepdim=True) + 1e-6).sqrt() * norm.key.double()
    turned = angles[positions.long()]
    q, k = (rotated(x, turned, rotary_dim, interleaved) for x in (q, k))
    bound = 5e-3 if dtype == torch.bfloat16 else 1e-3
    assert (queries.double() - q).norm() / q.norm() < bound
    expected = torch.full_like(pool, torch.nan, dtype=torch.float64)
    stored = slots >= 0
    at = slots[stored].long()
    expected[at // block_size, layer, 0, :, at % block_size] = k[stored]
    expected[at // block_size, layer, 1, :, at % block_size] = v[stored]
    assert torch.equal(pool.isnan(), expected.isnan()), "a slot too many or too few was written"
    written = ~expected.isnan()
    assert (pool.double()[written] - expected[written]).norm() / expected[written].norm() < bound
    assert torch.equal(
        pool[:, layer, 1][written[:, layer, 1]].double(), expected[:, layer, 1][written[:, layer, 1]]
    )
