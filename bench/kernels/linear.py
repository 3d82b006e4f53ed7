"""Products of few rows: time, and the rate at which weights are read, as a share of the read ceiling.

python -m bench.kernels.linear

Two ways: cuBLAS and linear_rows; `*` marks what the engine takes.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch

from bench.kernels import timing
from engine.backends.cuda.linear_rows import MAX_ROWS, linear_rows, rows_that_pay

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

Way = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
WAYS: dict[str, Way] = {
    "cublas": lambda x, weight: torch.mm(x, weight.t()),
    "rows": lambda x, weight: linear_rows(x, weight, None),
}


def microseconds(way: Way, x: torch.Tensor, weights: list[torch.Tensor]) -> float:
    """Of one call, checked first."""
    wanted = x.double() @ weights[0].double().t()
    error = float((way(x, weights[0]).double() - wanted).norm() / wanted.norm())
    assert error < 5e-3, f"relative error {error:.1e}"

    def work() -> None:
        for weight in weights:
            way(x, weight)

    return timing.graph_time_us(work, len(weights), samples=5)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, nargs="*", default=[1, 4, 8, 16, 32, 64, 128, 256])
    rows = parser.parse_args().rows
    read = timing.read_ceiling(2 << 30)
    print(f"{torch.cuda.get_device_name()}, reads {read / 1e12:.2f} TB/s; us, share of that")
    print(" " * 32 + "".join(f"{count:>14}" for count in rows))
    for name, (n, k) in SHAPES.items():
        count = max(2, -(-COLD_BYTES // (n * k * 2)))
        weights = [torch.empty(n, k, dtype=torch.bfloat16, device="cuda") for _ in range(count)]
        for weight in weights:
            weight.uniform_(-1, 1)
        for label, way in WAYS.items():
            line = f"{name:12} {n:6} x {k:5} {label:6}"
            for m in rows:
                if label != "cublas" and m > MAX_ROWS:
                    continue
                x = torch.randn(m, k, dtype=torch.bfloat16, device="cuda")
                us = microseconds(way, x, weights)
                mark = "*" if (label == "rows") == (m <= rows_that_pay(n, k)) else " "
                line += f"{us:8.1f}{(n * k + m * (n + k)) * 2 / us * 1e6 / read:5.0%}{mark}"
            print(line, flush=True)
        del weights


if __name__ == "__main__":
    main()
