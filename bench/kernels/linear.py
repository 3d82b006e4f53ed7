"""Products of the models' shapes by torch.mm, by cuBLASLt's chosen algorithms, and by linear_rows; cold L2.

python -m bench.kernels.linear

A time is followed by its share of the floor: weights, input and output at the read ceiling, or the products
at the rate of a large one, whichever takes longer. `*` marks what the engine takes; with --batch-invariant
that is `chosen` everywhere.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch

from bench.kernels import timing
from engine.backends.cuda import loader
from engine.backends.cuda.linear import CudaLinear
from engine.backends.cuda.linear_rows import MAX_ROWS, layout_of, linear_rows, rows_that_pay

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
ROWS = (1, 4, 8, 16, 32, 64, 128, 256, 300, 512, 1024, 2048)
MAX_HEAD_ROWS = 256
COLD_BYTES = 400 << 20  # weights in rotation, so that each call finds a cold L2
CEILING_SIZE = 8192

Way = Callable[[torch.Tensor], torch.Tensor]


def ways(name: str, weight: torch.Tensor) -> dict[str, Way]:
    """What is timed, by name; the head's products are not rounded."""
    head = name.endswith("head")
    linear = CudaLinear(weight, None, few_rows=0)

    def by_choice(x: torch.Tensor) -> torch.Tensor:
        if not head:
            return linear.forward(x)
        out = torch.empty(x.shape[0], weight.shape[0], dtype=torch.float32, device=x.device)
        return linear.forward_float32(x, out)

    def by_torch(x: torch.Tensor) -> torch.Tensor:
        return torch.mm(x, weight.t(), out_dtype=torch.float32) if head else torch.mm(x, weight.t())

    return {"torch.mm": by_torch, "chosen": by_choice, "rows": lambda x: linear_rows(x, weight, None)}


def microseconds(calls: list[Way], x: torch.Tensor, wanted: torch.Tensor) -> float:
    """Of one call; the first is checked. Each has a weight of its own."""
    error = float((calls[0](x).double() - wanted).norm() / wanted.norm())
    assert error < 5e-3, f"relative error {error:.1e}"

    def work() -> None:
        for call in calls:
            call(x)

    return timing.graph_time_us(work, len(calls), samples=5)


def product_ceiling() -> float:
    """FLOP/s of a large product."""
    a, b = (torch.randn(CEILING_SIZE, CEILING_SIZE, dtype=torch.bfloat16, device="cuda") for _ in range(2))
    return 2 * CEILING_SIZE**3 / timing.graph_time_us(lambda: torch.mm(a, b), 1, samples=5) * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, nargs="*", default=ROWS)
    parser.add_argument("--shapes", nargs="*", default=list(SHAPES), choices=list(SHAPES))
    options = parser.parse_args()
    read, products = timing.read_ceiling(2 << 30), product_ceiling()
    rates = f"reads {read / 1e12:.2f} TB/s, products {products / 1e12:.0f} TFLOP/s"
    print(f"{torch.cuda.get_device_name()}: {rates}")
    print("us, share of the floor" + " " * 14 + "".join(f"{count:>14}" for count in options.rows))
    for name in options.shapes:
        n, k = SHAPES[name]
        count = max(2, -(-COLD_BYTES // (n * k * 2)))
        weights = [torch.empty(n, k, dtype=torch.bfloat16, device="cuda") for _ in range(count)]
        for weight in weights:
            weight.uniform_(-1, 1)
        made = [ways(name, weight) for weight in weights]
        rows = [m for m in options.rows if not name.endswith("head") or m <= MAX_HEAD_ROWS]
        lines = {label: f"{name:12} {n:6} x {k:5} {label:9}" for label in made[0]}
        for m in rows:
            x = torch.randn(m, k, dtype=torch.bfloat16, device="cuda")
            wanted = x.double() @ weights[0].double().t()
            out_bytes = 4 if name.endswith("head") else 2
            floor = max(((n + m) * k * 2 + m * n * out_bytes) / read, 2 * m * n * k / products) * 1e6
            for label in lines:
                if label == "rows" and (m > MAX_ROWS or not layout_of(m, n, k, loader.facts())):
                    lines[label] += " " * 14
                    continue
                us = microseconds([one[label] for one in made], x, wanted)
                taken = "rows" if m <= rows_that_pay(n, k) else "chosen"
                lines[label] += f"{us:8.1f}{floor / us:5.0%}{'*' if label == taken else ' '}"
        print("\n".join(lines.values()), flush=True)
        del weights, made


if __name__ == "__main__":
    main()
