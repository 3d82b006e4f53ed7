"""Products of few rows: time, and the rate at which weights are read, as a share of the read ceiling.

python -m bench.kernels.linear
"""

from __future__ import annotations

import argparse

import torch

from bench.kernels import timing
from engine.backends.cuda.linear import CudaLinear

SHAPES = {
    "8b qkv": (6144, 4096),
    "8b o": (4096, 4096),
    "8b gate_up": (28672, 4096),
    "8b down": (4096, 14336),
    "8b head": (128256, 4096),
    "0.6b qkv": (4096, 1024),
    "0.6b o": (1024, 2048),
    "0.6b gate_up": (6144, 1024),
    "0.6b down": (1024, 3072),
    "0.6b head": (151936, 1024),
}
COLD_BYTES = 400 << 20  # weights in rotation, so that each call finds a cold L2


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, nargs="*", default=[1, 2, 4, 8, 16, 32, 64, 128, 256, 2048])
    rows = parser.parse_args().rows
    read = timing.read_ceiling(2 << 30)
    print(
        f"{torch.cuda.get_device_name()}, reads {read / 1e12:.2f} TB/s; us and share of the ceiling (TFLOP/s)"
    )
    print("rows".rjust(24) + "".join(f"{count:>16}" for count in rows))
    for name, (n, k) in SHAPES.items():
        count = max(2, -(-COLD_BYTES // (n * k * 2)))
        weights = [
            torch.empty(n, k, dtype=torch.bfloat16, device="cuda").uniform_(-1, 1) for _ in range(count)
        ]
        linears = [CudaLinear(weight, None) for weight in weights]
        line = f"{name:10} {n:6} x {k:5}"
        for m in rows:
            x = torch.randn(m, k, dtype=torch.bfloat16, device="cuda")
            wanted = x.double() @ weights[0].double().t()
            error = float((linears[0].forward(x).double() - wanted).norm() / wanted.norm())
            assert error < 5e-3, f"{name}, {m} rows: relative error {error:.1e}"

            def work(x: torch.Tensor = x, linears: list[CudaLinear] = linears) -> None:
                for linear in linears:
                    linear.forward(x)

            us = timing.graph_time_us(work, count, samples=5)
            share, flops = (n * k + m * (n + k)) * 2 / us * 1e6 / read, 2 * m * n * k / us / 1e6
            line += f"{us:8.1f} {share:4.0%} {flops:3.0f}"
        print(line, flush=True)
        del weights, linears


if __name__ == "__main__":
    main()
