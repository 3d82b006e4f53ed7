"""attention_prefill beside torch's SDPA backends: causal TFLOP/s over a paged pool, graph replay, cold L2.

    python -m bench.kernels.attention_prefill            the table
    python -m bench.kernels.attention_prefill --dims 128 --portable
    python -m bench.kernels.attention_prefill --peers --fa3 LIBRARY     see bench/kernels/fa3.py

Each head size runs in a process of its own under a time limit, so that a hang costs one row. FLOPs are
4 * D * H * (sum over queries of visible keys), as FlashAttention's benches count them.
"""

import argparse
import subprocess
import sys
from pathlib import Path

import torch

from bench.kernels import fa3
from bench.kernels.reference import check_attention

HEADS, KV_HEADS, BLOCK = 32, 8, 64
LAYERS = 4
POOL_TOKENS = 65536
FLUSH_BYTES = 256 << 20
SHAPES = {  # name: (requests, chunk, keys)
    "2 x 8192 on 8192": (2, 8192, 8192),
    "1 x 8192 on 8192": (1, 8192, 8192),
    "1 x 16384 on 16384": (1, 16384, 16384),
    "8 x 2048 on 2048": (8, 2048, 2048),
    "1 x 2048 on 16384": (1, 2048, 16384),
    "4 x 512 on 8192": (4, 512, 8192),
    "1 x 512 on 4096": (1, 512, 4096),
}


def median_us(run, flush: torch.Tensor, repeats: int) -> float:
    """Median time of one graph replay, the L2 overwritten before each."""
    run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    pairs = []
    for _ in range(repeats):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        flush.zero_()
        start.record()
        graph.replay()
        end.record()
        pairs.append((start, end))
    torch.cuda.synchronize()
    times = sorted(start.elapsed_time(end) for start, end in pairs[2:])
    return times[len(times) // 2] * 1e3


def sdpa_us(dim: int, shape: tuple[int, int, int], flush: torch.Tensor, repeats: int) -> dict[str, float]:
    """Time the contiguous peers, on the shapes that they take."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    requests, chunk, keys = shape
    q = torch.randn(requests, HEADS, chunk, dim, dtype=torch.bfloat16, device="cuda")
    k, v = (torch.randn(requests, HEADS, keys, dim, dtype=torch.bfloat16, device="cuda") for _ in range(2))
    times = {}
    for name, backend in (("cuDNN", SDPBackend.CUDNN_ATTENTION), ("FA2", SDPBackend.FLASH_ATTENTION)):
        if chunk != keys:
            continue  # neither backend takes a bottom-right causal mask
        try:
            with sdpa_kernel(backend):
                times[name] = median_us(
                    lambda: torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True),
                    flush,
                    repeats,
                )
        except RuntimeError as error:
            print(f"# {name} D {dim}: {str(error).splitlines()[0]}")
    return times


def bench(dim: int, portable: bool, peers: bool, has_fa3: bool, names: list[str], repeats: int) -> None:
    """Print one row for each shape."""
    from engine.backends.cuda.attention_prefill import AttentionPrefill

    flush = torch.empty(FLUSH_BYTES, dtype=torch.uint8, device="cuda")
    attention = AttentionPrefill(
        num_heads=HEADS,
        num_kv_heads=KV_HEADS,
        head_dim=dim,
        block_size=BLOCK,
        dtype=torch.bfloat16,
        portable=portable,
    )
    pool = torch.randn(
        POOL_TOKENS // BLOCK, LAYERS, 2, KV_HEADS, BLOCK, dim, device="cuda", dtype=torch.bfloat16
    )
    for name in names:
        requests, chunk, keys = SHAPES[name]
        ids = torch.randperm(pool.shape[0], device="cuda").int()
        tables = ids[: requests * keys // BLOCK].view(requests, -1).contiguous()
        q = torch.randn(requests * chunk, HEADS, dim, dtype=torch.bfloat16, device="cuda")
        out = torch.full_like(q, float("nan"))
        cu_seqlens_q = torch.arange(requests + 1, device="cuda", dtype=torch.int32) * chunk
        context_lens = torch.full((requests,), keys, device="cuda", dtype=torch.int32)
        plan = attention.plan(cu_seqlens_q, context_lens, q.shape[0])
        us = median_us(lambda: attention(q, pool, 1, tables, plan, out), flush, repeats)  # noqa: B023
        visible = requests * (chunk * (keys - chunk) + chunk * (chunk + 1) // 2)
        flops = 4 * dim * HEADS * visible
        last = slice((requests - 1) * chunk, None)
        check_attention(name, pool, 1, tables[-1], keys, q[last][-4:], out[last][-4:])
        row = f"D {dim:3d}  {name:20s} {us:9.1f} us {flops / us / 1e6:7.1f} TFLOP/s"
        if has_fa3:
            peer = fa3.FA3(
                pool, HEADS, cu_seqlens_q, context_lens, tables, max_queries=chunk, max_context=keys
            )
            out.fill_(float("nan"))
            fa3_us = median_us(lambda: peer(q, 1, out), flush, repeats)  # noqa: B023
            check_attention(f"FA3 {name}", pool, 1, tables[-1], keys, q[last][-4:], out[last][-4:])
            row += f"  FA3 {flops / fa3_us / 1e6:6.1f}"
        if peers:
            for other, peer_us in sdpa_us(dim, SHAPES[name], flush, repeats).items():
                row += f"  {other} {flops / peer_us / 1e6:6.1f}"
        print(row, flush=True)
    plan_us = median_us(lambda: attention.plan(cu_seqlens_q, context_lens, q.shape[0]), flush, repeats)
    print(f"D {dim:3d}  plan of the last shape {plan_us:6.1f} us", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--dims", type=int, nargs="+", default=[128, 64, 256])
    parser.add_argument("--shapes", nargs="+", default=list(SHAPES), choices=list(SHAPES))
    parser.add_argument("--portable", action="store_true")
    parser.add_argument("--peers", action="store_true")
    parser.add_argument("--fa3", type=Path, help="library of FlashAttention-3")
    parser.add_argument("--repeats", type=int, default=12)
    parser.add_argument("--limit-s", type=float, default=40.0)
    parser.add_argument("--here", action="store_true", help="in this process, without the time limit")
    args = parser.parse_args()
    if args.here:
        has_fa3 = fa3.load(args.fa3)
        for dim in args.dims:
            bench(dim, args.portable, args.peers, has_fa3, args.shapes, args.repeats)
        return 0
    failed = 0
    for dim in args.dims:
        command = [sys.executable, "-m", "bench.kernels.attention_prefill", "--here", "--dims", str(dim)]
        command += ["--repeats", str(args.repeats), "--shapes", *args.shapes]
        command += ["--portable"] * args.portable + ["--peers"] * args.peers
        command += ["--fa3", str(args.fa3)] if args.fa3 else []
        try:
            failed |= subprocess.run(command, timeout=args.limit_s, check=False).returncode
        except subprocess.TimeoutExpired:
            print(f"D {dim}: no answer within {args.limit_s} s")
            failed = 1
    return failed


if __name__ == "__main__":
    sys.exit(main())
