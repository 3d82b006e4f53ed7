"""attention_decode over shapes: graph replay, back to back over layers, cold L2, random blocks.

python -m bench.kernels.attention_decode [--quick] [--fill tma|cp_async|both]
"""

import argparse
from dataclasses import dataclass

import torch
import torch.nn.functional as functional

from bench.kernels import timing
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
    fill, tile, blocks = (variant + ",0,0").split(",")[:3]
    tiles = choose_tiles(
        shape_of(pool, case.heads, case.queries), loader.facts(),
        tma={"tma": True, "cp": False}.get(fill), tile=int(tile) or None, blocks=int(blocks) or None,
    )  # fmt: skip
    attend = AttentionDecode(
        pool, num_query_heads=case.heads, queries=case.queries,
        limits=DecodeLimits(len(case.lengths), sum(case.lengths)), tiles=tiles,
    )  # fmt: skip
    attend.plan(lens)

    def layers() -> None:
        for layer in range(pool.shape[1]):
            attend(q, layer, tables, out)

    return timing.graph_time_us(layers, pool.shape[1])


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
    parser.add_argument("--variant", action="append", help="default, or FILL,TILE,BLOCKS with FILL tma or cp")
    parser.add_argument("--no-peer", action="store_true")
    parser.add_argument("--only", type=int, action="append", help="numbers of cases")
    options = parser.parse_args()
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
        del pool
        peer = None if options.no_peer else sdpa_time_us(case)
        if peer:
            row += f" | sdpa {peer:8.1f} us {case.bytes / peer / 1e6:5.2f} TB/s"
        print(row, flush=True)


if __name__ == "__main__":
    main()
