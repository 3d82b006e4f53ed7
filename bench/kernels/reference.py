"""Attention in float32, for the checks that benches make of what they time."""

import torch


def check_attention(
    name: str,
    pool: torch.Tensor,
    layer: int,
    blocks: torch.Tensor,
    length: int,
    q: torch.Tensor,
    out: torch.Tensor,
) -> None:
    """Compare the newest tokens of one request with float32 arithmetic.

    Args:
        blocks: the request's block ids. length: its tokens, the new ones included.
        q, out: [n, H, D] of its last n tokens.
    Raises:
        AssertionError: relative error above 1 %, or NaN.
    """
    kv_heads, block_size, head_dim = pool.shape[3:]
    ids = blocks[: -(-length // block_size)].long()
    k, v = (
        pool[ids, layer, which].transpose(0, 1).reshape(kv_heads, -1, head_dim)[:, :length].float()
        for which in (0, 1)
    )
    n, heads = q.shape[:2]
    scores = torch.einsum("nhgd,htd->nhgt", q.float().view(n, kv_heads, -1, head_dim), k) * head_dim**-0.5
    at = torch.arange(length, device=q.device)
    scores.masked_fill_((at > at[length - n :, None])[:, None, None], -torch.inf)
    right = torch.einsum("nhgt,htd->nhgd", scores.softmax(-1), v).reshape(n, heads, head_dim)
    error = float((out.float() - right).norm() / right.norm())
    assert error < 1e-2, f"{name}: relative error {error:.2e}"
