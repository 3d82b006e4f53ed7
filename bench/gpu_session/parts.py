"""What there is to check and to measure, in order, with the seconds that it may take on an H200."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.gpu_session.driver import Part

PYTHON = sys.executable
KERNELS = "tests/kernels"
INVARIANCE = f"{KERNELS}/test_batch_invariance.py"
# The filter spares PyTorch's own kernels, of which there are many.
OURS = (
    "attention", "rope", "norm", "gated", "embedding", "block_copy", "sampling", "linear_rows", "step_",
)  # fmt: skip
SANITIZED = (
    "attention_decode", "attention_prefill", "rope_kv_store", "rows", "block_copy", "sampling", "linear_rows",
)  # fmt: skip
SHAPES = ("llama-8b", "qwen3-0.6b")
TESTED = r"^(FAILED|ERROR)|^E  +Assert|passed|failed|\d+ skipped"
SOAKED = rf"{TESTED}|answered"
MEASURED = r"[│|] (both|apart)|floor at|both:|apart:|rror"


@dataclass(frozen=True, slots=True)
class Inputs:
    """What parts need beside the repository.

    Attributes:
        shapes: directory of directories with a config.json each: llama-8b, qwen3-0.6b.
        out: for the files of benches.
        fa3: FlashAttention-3's library (bench/kernels/fa3.py says which); None: it is no peer.
        trace: of request lengths, for goodput; None: that load is left out.
        rounds: of the engine's workloads.
    """

    shapes: Path
    out: Path
    fa3: Path | None
    trace: Path | None
    rounds: int


def all_parts(inputs: Inputs) -> list[Part]:
    """Every part, checks first, those that take two GPUs last."""
    return [*_checks(), *_host(), *_engines(inputs), *_kernels(inputs), *_two_gpus(inputs)]


def choose(parts: Sequence[Part], names: Sequence[str]) -> list[Part]:
    """Parts by name, in the order of the names.

    Raises:
        ValueError: there is none of that name.
    """
    known = {part.name: part for part in parts}
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"no part {unknown}; there are {', '.join(known)}")
    return [known[name] for name in names]


def _pytest(*arguments: str, workers: int = 0, marked: str = "gpu and not matrix") -> tuple[str, ...]:
    parallel = ("-n", str(workers)) if workers and importlib.util.find_spec("xdist") else ()
    return (PYTHON, "-m", "pytest", "-m", marked, "-q", "-p", "no:cacheprovider", *parallel, *arguments)


def _sanitize(tool: str) -> tuple[tuple[str, ...], ...]:
    """One process a file of tests: the tool takes most of a minute to start each."""
    names = [part for name in OURS for part in ("--kernel-name", f"kns={name}")]
    return tuple(
        (
            "compute-sanitizer", "--tool", tool, "--error-exitcode", "9", "--print-limit", "8", *names,
            PYTHON, "-m", "pytest", "-m", "sanitize", "-q", "-p", "no:cacheprovider",
            f"--confcutdir={KERNELS}", f"{KERNELS}/test_{name}.py",
        )
        for name in SANITIZED
    )  # fmt: skip


def _engine(inputs: Inputs, shape: str, name: str, *flags: str) -> tuple[tuple[str, ...], ...]:
    config, results = str(inputs.shapes / shape), str(inputs.out / f"{name}.json")
    rounds = str(inputs.rounds)
    return (
        (PYTHON, "-m", "bench.engine", "--config", config, "--rounds", rounds, "--json", results, *flags),
    )


def _checks() -> list[Part]:
    confined = f"--confcutdir={KERNELS}"  # no other conftest is loaded
    rest = f"--ignore={INVARIANCE}"
    invariance = tuple(_pytest(INVARIANCE, confined, "-k", which) for which in ("tiny", "wide", "products"))
    found = r"ERROR SUMMARY|RACECHECK SUMMARY|passed|failed|=== (Invalid|Error|Program)"
    return [
        Part("kernels", 1, 110, 180, (_pytest(KERNELS, confined, rest, workers=12),), TESTED),
        Part("memcheck", 1, 100, 170, _sanitize("memcheck"), found),
        Part("racecheck", 1, 120, 200, _sanitize("racecheck"), found),
        Part("invariance", 1, 90, 150, invariance, TESTED),
        Part(
            "soak", 1, 90, 300, (_pytest(f"{KERNELS}/test_soak.py", "-s", confined, marked="matrix"),), SOAKED
        ),
    ]


def _host() -> list[Part]:
    cases = ("--decode", "1x1024", "256x384", "--prefill", "2048@0", "300@0")
    command = (PYTHON, "-m", "bench.cuda_step", "--shape", "qwen3-0.6b", *cases)
    show = r"^(decode|prefill|llama|qwen)|rror"
    return [Part("steps", 1, 45, 80, (command,), show)]


def _engines(inputs: Inputs) -> list[Part]:
    large, small = SHAPES
    invariant = ("--batch-invariant", "--workloads", "decode,chat")
    both = ("--workloads", "interrupted")

    def part(name: str, shape: str, seconds: float, *flags: str) -> Part:
        return Part(name, 1, seconds, 1.5 * seconds, _engine(inputs, shape, name, *flags), MEASURED)

    def profile(name: str, shape: str, seconds: float) -> Part:
        trace = str(inputs.out / f"{name}.json.gz")
        flags = ("--rounds", "1", "--workloads", "prefill,decode,chat", "--profile", trace)
        show = rf"{MEASURED}|ms a step|busy"
        return Part(name, 1, seconds, 1.5 * seconds, _engine(inputs, shape, name, *flags), show)

    return [
        part("engine-8b", large, 175),
        part("engine-0.6b", small, 100),
        part("engine-8b-invariant", large, 105, *invariant),
        part("engine-0.6b-invariant", small, 65, *invariant),
        part("interrupted-both", large, 45, *both),
        profile("profile-8b", large, 85),
        profile("profile-0.6b", small, 45),
    ]


def _kernels(inputs: Inputs) -> list[Part]:
    fa3 = ("--fa3", str(inputs.fa3)) if inputs.fa3 else ()
    prefill = (PYTHON, "-m", "bench.kernels.attention_prefill", "--peers", *fa3)
    decode = (PYTHON, "-m", "bench.kernels.attention_decode", *fa3)
    return [
        Part("bench-prefill", 1, 60, 100, (prefill,), "."),
        Part("bench-decode", 1, 70, 110, (decode,), "."),
        Part("bench-rows", 1, 35, 60, ((PYTHON, "-m", "bench.kernels.rows"),), "."),
    ]


def _two_gpus(inputs: Inputs) -> list[Part]:
    large = SHAPES[0]
    apart = ("--role", "apart", "--gpus", "0,1", "--workloads", "interrupted,undisturbed")
    folder = "tests/integration/kvtransfer"
    transports = _pytest(folder, f"--confcutdir={folder}", workers=6)
    cluster = (PYTHON, "-m", "bench.gpu_cluster", str(inputs.shapes / large))
    invariant = (*cluster, "--scenario", "two_gpus", "--batch-invariant", "--rounds", "1")
    told = r"equal|hand-off|kill|WRONG|passed|FAILED"
    layers = [
        (PYTHON, "-m", "bench.told_layers", str(inputs.shapes / shape), "--length", length, "--prompts", "8")
        for shape, length in zip(SHAPES, ("2048", "1024"), strict=True)
    ]
    parts = [
        Part("ipc", 2, 60, 110, (transports,), TESTED),
        Part("ipc-bench", 2, 35, 70, ((PYTHON, "-m", "bench.cuda_ipc"),), r"exposed|whole|GPU 0"),
        Part("told-layers", 1, 30, 60, tuple(layers), r"tokens"),
        Part("interrupted", 2, 60, 110, _engine(inputs, large, "interrupted", *apart), MEASURED),
        Part("cluster", 2, 110, 180, (cluster,), told),
        Part("cluster-invariant", 2, 50, 90, (invariant,), told),
    ]
    if inputs.trace:
        goodput = (
            PYTHON, "-m", "bench.goodput", "--shape", "llama-3.1-8b", "--trace", str(inputs.trace),
            "--worker-args", "--kv-bytes 60G --context-length 16384", "--both-args", "--max-step-tokens 512",
            "--start-timeout", "150", "--budget", "550", "--out", str(inputs.out / "goodput"),
        )  # fmt: skip
        parts.append(Part("goodput", 2, 560, 585, (goodput,), r"\||WRONG"))
    return parts
