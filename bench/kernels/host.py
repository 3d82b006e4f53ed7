"""What the launches of a step cost the host, on any machine: `python -m bench.kernels.host`.

The wrappers run as they do on a GPU, on tensors in host memory and with a driver that does nothing, so what
is left is Python: looking kernels up, packing arguments, allocating outputs. Products are left out (they are
cuBLAS's), and so is the driver's launch (about 2 us).
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import functools
import itertools
import statistics
import time
from collections.abc import Callable, Iterator
from unittest import mock

import torch

from engine.backends.base import Activation, QKNorm, RopeTable
from engine.backends.cuda import driver, launches, loader, tensor_map
from engine.backends.cuda.attention_decode import AttentionDecode, DecodeLimits
from engine.backends.cuda.attention_prefill import AttentionPrefill
from engine.backends.cuda.embedding import embedding
from engine.backends.cuda.gated_activation import gated_activation
from engine.backends.cuda.linear_rows import linear_rows
from engine.backends.cuda.norms import rms_norm
from engine.backends.cuda.rope_kv_store import rope_kv_store
from engine.backends.cuda.target import TYPICAL_DEVICES

HEADS, KV_HEADS, DIM, HIDDEN, FFN, BLOCK = 16, 8, 128, 256, 512, 64  # widths do not matter to the host
TOKENS, REPEATS, ROUNDS = 8, 200, 7
"""Tokens are few: allocating is the caching allocator's work on a GPU, whatever the size."""


class HostKernel:
    """Stands where cupy's kernel does."""

    max_dynamic_shared_size_bytes = 0

    def __init__(self, name: str) -> None:
        self.name = name
        self.kernel: driver.Function = self
        self.ptr = 1


class HostModule:
    """Stands where cupy's module does."""

    def get_function(self, name: str) -> HostKernel:
        """A kernel, whatever its name."""
        return HostKernel(name)


def cases() -> dict[str, Callable[[], object]]:
    """One launch each of what a layer of a step runs, then of what a step runs once."""

    def empty(*size: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
        return torch.zeros(size, dtype=dtype)

    ints = [torch.zeros(TOKENS + 1, dtype=torch.int32) for _ in range(3)]
    pool = empty(4, 2, 2, KV_HEADS, BLOCK, DIM)
    x, residual, norm = empty(TOKENS, HIDDEN), empty(TOKENS, HIDDEN), empty(HIDDEN)
    gate_up, qkv = empty(TOKENS, 2 * FFN), empty(TOKENS, (HEADS + 2 * KV_HEADS) * DIM)
    table, rope = empty(64, HIDDEN), RopeTable(empty(64, DIM, dtype=torch.float32), DIM)
    head_norm = QKNorm(empty(DIM), empty(DIM), 1e-6)
    q, out, weight = empty(TOKENS, HEADS, DIM), empty(TOKENS, HEADS, DIM), empty(HIDDEN, HIDDEN)
    tables = torch.zeros(TOKENS, 4, dtype=torch.int32)
    decode = AttentionDecode(pool, num_query_heads=HEADS, queries=1, limits=DecodeLimits(TOKENS, 256))
    prefill = AttentionPrefill(
        num_heads=HEADS, num_kv_heads=KV_HEADS, head_dim=DIM, block_size=BLOCK, dtype=torch.bfloat16
    )
    plan = prefill.plan(ints[0], ints[1][:TOKENS], TOKENS)
    return {
        "rms_norm": lambda: rms_norm(x, norm, 1e-6, residual),
        "rope_kv_store": lambda: rope_kv_store(
            qkv, ints[0][:TOKENS], ints[1][:TOKENS], pool, 1, rope, head_norm
        ),
        "attention_prefill": lambda: prefill(q, pool, 1, tables, plan, out),
        "attention_decode": lambda: decode(q, 1, tables, out),
        "gated_activation": lambda: gated_activation(gate_up, Activation.SILU),
        "linear_rows": lambda: linear_rows(x, weight, None),
        "attention_decode_plan": lambda: decode.plan(ints[0][:TOKENS]),
        "attention_prefill_plan": lambda: prefill.plan(ints[0], ints[1][:TOKENS], TOKENS),
        "embedding": lambda: embedding(ints[0], table),
        "torch.empty, once": lambda: torch.empty(TOKENS, HIDDEN, dtype=torch.bfloat16),
    }


def microseconds(call: Callable[[], object]) -> float:
    """Of one call, median over rounds."""
    times = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        for _ in itertools.repeat(None, REPEATS):
            call()
        times.append((time.perf_counter() - start) / REPEATS * 1e6)
    return statistics.median(times)


@contextlib.contextmanager
def no_device(arch: str = "sm_90a") -> Iterator[None]:
    """An H100, or the device of another arch, as far as the wrappers can tell, on which nothing happens."""
    facts = TYPICAL_DEVICES[arch]
    nothing = ctypes.CDLL(None).getppid  # costs a system call, as the driver might

    def zero(*_: object) -> int:
        return 0

    def launch(*_: object) -> int:
        nothing()
        return 0

    load = functools.cache(lambda *_: loader.Module(HostModule()))
    with (
        mock.patch.multiple(loader, current_device=zero, facts=lambda: facts, _load=load),
        mock.patch.multiple(driver, device_facts=lambda _: facts, current_stream=zero),
        mock.patch.multiple(tensor_map, _encode=lambda: zero),
        mock.patch.multiple(launches, launcher=lambda: launch),
    ):
        yield


def main() -> None:
    """Print the table."""
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    with no_device():
        made = cases()
        for call in made.values():
            call()
        for name, call in made.items():
            print(f"{name:22} {microseconds(call):8.1f} us a call")


if __name__ == "__main__":
    main()
