"""attention_decode over shapes: graph replay, back to back over layers, cold L2, random blocks.

    python -m bench.kernels.attention_decode [--head-dim D] [--fa3 LIBRARY] [--no-peer]

Every row's result is compared with float32 arithmetic on a few of its requests before it is timed.
Work is spread as the engine does outside of its batch-invariant mode.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as functional

from bench.kernels import fa3, timing
from bench.kernels.reference import check_attention
from engine.backends.cuda import loader
from engine.backends.cuda.attention_decode import AttentionDecode, DecodeLimits, shape_of
from engine.backends.cuda.attention_decode_tiles import choose_tiles

BLOCK = 64


@dataclass(frozen=True)
class Case:
    lengths: tuple[int, ...]
    head_dim: int = 128
    heads: int = 32
    kv_heads: int = 8
    queries: int = 1

    @property
    def name(self) -> str:
        text = " + ".join(f"{self.lengths.count(n)} x {n}" for n in dict.fromkeys(self.lengths))
        return f"{text}, D {self.head_dim}" + (f", {self.queries} new" if self.queries > 1 else "")

    @property
    def bytes(self) -> int:
        return sum(self.lengths) * self.kv_heads * self.head_dim * 4


CASES = [
    Case((4096,) * 64),
    Case((1024,) * 256),
    Case((4096,) * 16),
    Case((131072,)),
    Case((4096,) * 31 + (131072,)),
    Case((16384,)),
    Case((16384,) * 4),
    Case((2048,) * 64),
    Case((4096,) * 64, queries=4),
    Case((1024,)),
    Case((1024,) * 8),
    *(
        Case(lengths, head_dim=head_dim)
        for head_dim in (64, 256)
        for lengths in (
            (4096,) * 64, (1024,) * 256, (4096,) * 16, (131072,),
            (4096,) * 31 + (131072,), (16384,), (16384,) * 4,
        )
    ),
]  # fmt: skip


def our_time_us(case: Case, pool: torch.Tensor, tables: torch.Tensor, variant: str) -> float:
    lens = torch.tensor(case.lengths, dtype=torch.int32, device="cuda")
    q = torch.randn(
        len(case.lengths) * case.queries, case.heads, case.head_dim, dtype=pool.dtype, device="cuda"
    )
    out = torch.empty_like(q)
    fill, tile, blocks, stages, warps = (variant + ",0,0,0,0").split(",")[:5]
    tiles = choose_tiles(
        shape_of(pool, case.heads, case.queries), loader.facts(),
        tma={"tma": True, "cp": False}.get(fill), tile=int(tile) or None, blocks=int(blocks) or None,
        stages=int(stages) or None, consumers=int(warps) or None,
    )  # fmt: skip
    attend = AttentionDecode(
        pool, num_query_heads=case.heads, queries=case.queries,
        limits=DecodeLimits(len(case.lengths), sum(case.lengths)), spread=True, tiles=tiles,
    )  # fmt: skip
    attend.plan(lens)
    out.fill_(torch.nan)
    attend(q, 1, tables, out)
    check(case, pool, tables, q, out)

    def layers() -> None:
        for layer in range(pool.shape[1]):
            attend(q, layer, tables, out)

    return timing.graph_time_us(layers, pool.shape[1])


def fa3_time_us(case: Case, pool: torch.Tensor, tables: torch.Tensor) -> float:
    """FlashAttention-3 on the same pool, its schedule made beforehand as ours is."""
    lens = torch.tensor(case.lengths, dtype=torch.int32, device="cuda")
    starts = torch.arange(len(case.lengths) + 1, dtype=torch.int32, device="cuda") * case.queries
    q = torch.randn(int(starts[-1]), case.heads, case.head_dim, dtype=pool.dtype, device="cuda")
    out = torch.full_like(q, torch.nan)
    attend = fa3.FA3(
        pool, case.heads, starts, lens, tables, max_queries=case.queries, max_context=max(case.lengths)
    )
    attend(q, 1, out)
    check(case, pool, tables, q, out)

    def layers() -> None:
        for layer in range(pool.shape[1]):
            attend(q, layer, out)

    return timing.graph_time_us(layers, pool.shape[1])


def check(case: Case, pool: torch.Tensor, tables: torch.Tensor, q: torch.Tensor, out: torch.Tensor) -> None:
    """Compare layer 1 of the shortest and the last request with float32 arithmetic."""
    for i in {case.lengths.index(min(case.lengths)), len(case.lengths) - 1}:
        rows = slice(i * case.queries, (i + 1) * case.queries)
        check_attention(case.name, pool, 1, tables[i], case.lengths[i], q[rows], out[rows])


def sdpa_time_us(case: Case) -> float | None:
    """Torch's fastest SDPA on contiguous KV of equal lengths; None where it does not apply."""
    if len(set(case.lengths)) > 1 or case.queries > 1:
        return None
    shape = (len(case.lengths), case.kv_heads, case.lengths[0], case.head_dim)
    pairs = max(1, min(4, (2 << 30) // case.bytes))
    kv = [torch.randn(2, *shape, dtype=torch.bfloat16, device="cuda") for _ in range(pairs)]
    q = torch.randn(len(case.lengths), case.heads, 1, case.head_dim, dtype=torch.bfloat16, device="cuda")
    best = None
    for backend in (
        torch.nn.attention.SDPBackend.CUDNN_ATTENTION,
        torch.nn.attention.SDPBackend.FLASH_ATTENTION,
    ):

        def attend() -> None:
            for k, v in kv:
                functional.scaled_dot_product_attention(q, k, v, enable_gqa=True)

        try:
            with torch.nn.attention.sdpa_kernel(backend):
                us = timing.graph_time_us(attend, pairs, samples=7)
        except RuntimeError:
            continue
        best = us if best is None else min(best, us)
    return best


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--head-dim", type=int, default=0, help="one head size only")
    parser.add_argument("--variant", action="append", help="default, or tma|cp,TILE,BLOCKS,STAGES,WARPS")
    parser.add_argument("--no-peer", action="store_true", help="without torch's SDPA")
    parser.add_argument("--fa3", type=Path, help="library of FlashAttention-3, see bench/kernels/fa3.py")
    parser.add_argument("--only", type=int, action="append", help="numbers of cases")
    options = parser.parse_args()
    has_fa3 = fa3.load(options.fa3)
    ceiling, copy = timing.read_ceiling(), timing.copy_ceiling()
    print(f"read ceiling {ceiling / 1e12:.3f} TB/s, copy {copy / 1e12:.3f} TB/s", flush=True)
    for number, case in enumerate(CASES):
        if options.head_dim not in (0, case.head_dim) or (options.only and number not in options.only):
            continue
        layers = max(4, min(16, (12 << 30) // case.bytes))
        blocks = [-(-length // BLOCK) for length in case.lengths]
        pool = torch.empty(
            sum(blocks), layers, 2, case.kv_heads, BLOCK, case.head_dim, dtype=torch.bfloat16, device="cuda"
        ).normal_()
        tables = torch.full((len(blocks), max(blocks)), -1, dtype=torch.int32)
        order, used = torch.randperm(sum(blocks)).int(), 0
        for i, count in enumerate(blocks):
            tables[i, :count] = order[used : used + count]
            used += count
        tables = tables.cuda()
        row = f"{case.name:32}"
        for variant in options.variant or ["default"]:
            us = our_time_us(case, pool, tables, variant)
            rate = case.bytes / us * 1e6
            row += f" | {variant} {us:7.1f} us {rate / 1e12:5.2f} TB/s {rate / ceiling:6.1%}"
        if has_fa3:
            us = fa3_time_us(case, pool, tables)
            row += f" | fa3 {us:7.1f} us {case.bytes / us * 1e6 / ceiling:6.1%}"
        del pool
        peer = None if options.no_peer else sdpa_time_us(case)
        if peer:
            row += f" | sdpa {peer:8.1f} us {case.bytes / peer / 1e6:5.2f} TB/s"
        print(row, flush=True)


if __name__ == "__main__":
    main()
