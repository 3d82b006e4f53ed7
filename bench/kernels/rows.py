"""Row kernels, rope_kv_store and block_copy as shares of the copy ceiling; sampling in microseconds.

Each result is compared with torch's before it is timed.

python -m bench.kernels.rows
"""

import functools
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as functional

from bench.kernels import timing
from engine.backends.base import Activation, RopeTable
from engine.backends.cuda.block_copy import block_copy
from engine.backends.cuda.embedding import embedding
from engine.backends.cuda.gated_activation import gated_activation
from engine.backends.cuda.norms import layer_norm, rms_norm
from engine.backends.cuda.rope_kv_store import rope_kv_store
from engine.backends.cuda.sampling import SamplingRow, SamplingRows, logprobs, sample
from engine.sampler.race import run_race
from engine.sampler.truncation import find_floor
from engine.sampling_params import SamplingParams

TOKENS = 32768
ROUNDS = 4  # buffers in rotation, so that each launch finds a cold L2


def randn(*shape: int) -> torch.Tensor:
    return torch.empty(*shape, dtype=torch.bfloat16, device="cuda").normal_()


def check(name: str, mine: torch.Tensor, right: torch.Tensor) -> None:
    """Compare the first rows.

    Raises:
        AssertionError: relative error above 1 %, or NaN.
    """
    error = float((mine.float() - right.float()).norm() / right.float().norm())
    assert error < 1e-2, f"{name}: relative error {error:.2e}"


def row(name: str, num_bytes: int, work: Callable[[int], object], copy: float) -> None:
    def rounds() -> None:
        for i in range(ROUNDS):
            work(i)

    us = timing.graph_time_us(rounds, ROUNDS)
    rate = num_bytes / us * 1e6
    print(f"{name:44} {us:8.1f} us {rate / 1e12:5.2f} TB/s {rate / copy:6.1%} of copy", flush=True)


def norms(width: int, copy: float) -> None:
    tokens = TOKENS * 4096 // width
    x, residual = ([randn(tokens, width) for _ in range(ROUNDS)] for _ in range(2))
    weight, size, name = randn(width), tokens * width * 2, f"{tokens} x {width}"
    some, shape = x[0][:64].float(), (width,)
    check(
        "rms_norm", rms_norm(x[0], weight, 1e-5)[:64], functional.rms_norm(some, shape, weight.float(), 1e-5)
    )
    right = functional.layer_norm(some, shape, weight.float(), weight.float(), 1e-5)
    check("layer_norm", layer_norm(x[0], weight, weight, 1e-5)[:64], right)
    row(f"rms_norm {name}", 2 * size, lambda i: rms_norm(x[i], weight, 1e-5), copy)
    row(f"rms_norm + residual {name}", 4 * size, lambda i: rms_norm(x[i], weight, 1e-5, residual[i]), copy)
    row(f"layer_norm {name}", 2 * size, lambda i: layer_norm(x[i], weight, weight, 1e-5), copy)


def check_rope(
    queries: torch.Tensor, qkv: torch.Tensor, slots: torch.Tensor, pool: torch.Tensor, rope: RopeTable
) -> None:
    """Compare 64 tokens at positions 0 to 63, in layer 0."""
    heads = qkv[:64].float().view(64, 48, 128)
    cos, sin = rope.cos_sin[:64].chunk(2, -1)
    first, second = heads[:, :40].chunk(2, -1)
    cos, sin = cos[:, None], sin[:, None]
    turned = torch.cat((first * cos - second * sin, second * cos + first * sin), -1)
    at = slots[:64].long()
    check("rope_kv_store, queries", queries[:64], turned[:, :32])
    check("rope_kv_store, keys", pool[at // 64, 0, 0, :, at % 64], turned[:, 32:])
    check("rope_kv_store, values", pool[at // 64, 0, 1, :, at % 64], heads[:, 40:])


def bandwidth(copy: float) -> None:
    for width in (1024, 4096, 8192):
        norms(width, copy)
    gate_up = [randn(TOKENS // 4, 2 * 14336) for _ in range(ROUNDS)]
    size = gate_up[0].numel() * 2
    gate, up = gate_up[0][:64].float().chunk(2, -1)
    activated = gated_activation(gate_up[0], Activation.SILU)
    check("gated_activation", activated[:64], functional.silu(gate) * up)
    row(f"gated_activation silu {TOKENS // 4} x 14336", size * 3 // 2,
        lambda i: gated_activation(gate_up[i], Activation.SILU), copy)  # fmt: skip
    table, ids = (
        randn(128256, 4096),
        [torch.randint(0, 128256, (TOKENS,), device="cuda").int() for _ in range(4)],
    )
    assert torch.equal(embedding(ids[0], table), table[ids[0].long()]), "embedding"
    row(f"embedding {TOKENS} x 4096", TOKENS * 4096 * 4, lambda i: embedding(ids[i], table), copy)
    tokens, layers = TOKENS // 2, 8
    pool = randn(tokens // 64, layers, 2, 8, 64, 128)
    qkv = [randn(tokens, 48 * 128) for _ in range(ROUNDS)]
    rope = RopeTable(torch.randn(tokens, 128, device="cuda"), 128)
    positions = torch.arange(tokens, device="cuda").int()
    slots = (
        (torch.randperm(tokens // 64, device="cuda")[:, None] * 64 + torch.arange(64, device="cuda"))
        .view(-1)
        .int()
    )
    check_rope(rope_kv_store(qkv[0], positions, slots, pool, 0, rope, None), qkv[0], slots, pool, rope)
    row(f"rope_kv_store {tokens} tokens, 32/8 heads of 128", tokens * 48 * 128 * 4 + tokens * 512,
        lambda i: rope_kv_store(qkv[i], positions, slots, pool, i, rope, None), copy)  # fmt: skip
    order = torch.randperm(pool.shape[0], device="cuda").int()
    half = pool.shape[0] // 2
    size = pool[0].numel() * 2 * half
    block_copy(pool, pool, order[:half], order[half : 2 * half])
    assert torch.equal(pool[order[half].long()], pool[order[0].long()]), "block_copy"
    row(f"block_copy {half} blocks of 2 MiB", 2 * size,
        lambda _: block_copy(pool, pool, order[:half], order[half : 2 * half]), copy)  # fmt: skip
    staged = torch.empty_like(pool[:half, :, :, :4])
    row(f"block_copy gather, 4 of 8 heads, {half} blocks", size,
        lambda _: block_copy(pool, staged, order[:half], None, src_heads=slice(4)), copy)  # fmt: skip


def each_us(work: Callable[[torch.Tensor], object], tensors: list[torch.Tensor]) -> float:
    def rounds() -> None:
        for tensor in tensors:
            work(tensor)

    return timing.graph_time_us(rounds, len(tensors))


def on_cpu(logits: torch.Tensor, seed: int, cut: dict[str, float]) -> int:
    """What the CPU sampler draws from the same logits."""
    scaled = logits.cpu().numpy() / np.float32(0.8)
    best = int(scaled.argmax())
    params = SamplingParams(temperature=0.8, **cut)  # type: ignore[arg-type]
    return run_race(scaled, best, find_floor(scaled, float(scaled[best]), params), seed, 0)


def sampling() -> None:
    logits = [torch.randn(64, 128256, device="cuda") * 3 for _ in range(ROUNDS)]
    for name, cut in {
        "greedy": {"temperature": 0.0},
        "top-k 50, top-p 0.9": {"top_k": 50, "top_p": 0.9},
        "top-p 0.9": {"top_p": 0.9},
        "min-p 0.05": {"min_p": 0.05},
        "all tokens": {},
    }.items():
        rows = SamplingRows(
            [SamplingRow(**{"temperature": 0.8, "seed": i, **cut}) for i in range(64)], logits[0].device
        )
        draw = functools.partial(sample, rows=rows)
        if "temperature" in cut:
            assert torch.equal(draw(logits[0]), logits[0].argmax(-1)), name
        else:
            assert draw(logits[0])[:2].tolist() == [on_cpu(logits[0][i], i, cut) for i in range(2)], name
        print(f"{'sampling 64 x 128256, ' + name:44} {each_us(draw, logits):8.1f} us", flush=True)
    wishes = torch.full((64,), 5, dtype=torch.int32, device="cuda")
    tokens = torch.zeros(64, dtype=torch.int32, device="cuda")
    rank = functools.partial(logprobs, wishes=wishes, tokens=tokens)
    print(f"{'logprobs 64 x 128256, 5 most likely':44} {each_us(rank, logits):8.1f} us", flush=True)


def main() -> None:
    copy = timing.copy_ceiling()
    print(f"copy ceiling {copy / 1e12:.3f} TB/s, read and written")
    sampling()
    bandwidth(copy)


if __name__ == "__main__":
    main()
