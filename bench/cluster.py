"""A cluster on the CPU beside Hugging Face `generate`: same prompts, same machine, one run.

Prompts of 128 tokens, 64 tokens out, greedy, through the gateway over gRPC. Each measurement of
ours stands between two of Transformers', and the ratios are printed. Answers are compared.

    python -m bench.cluster [--rounds 3] [--json out.json]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM

from baton import models
from baton.client import Client
from baton.cluster import LocalCluster
from baton.generation import Answer
from tests.support.golden import varied_prompts
from tests.support.traffic import complete_all

NUM_IN, NUM_OUT = 128, 64
PREFILL = 512
TARGETS = {
    "1 at a time": (1.0, 1.2),
    "8 at once": (1.2, 1.45),
    "32 at once": (1.7, 2.2),
    "prefill": (0.95, 1.1),
}
OPTIONS = {"temperature": 0.0, "ignore_eos": True}


class Transformers:
    """The reference: Hugging Face `generate` in float32 on all cores."""

    def __init__(self, model_dir: Path) -> None:
        self._model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
        self._model.generation_config.eos_token_id = None
        self._model.generation_config.pad_token_id = 0

    def generate(self, prompts: Sequence[Sequence[int]], num_out: int) -> tuple[list[list[int]], float]:
        """Answer the prompts as one batch; tokens and seconds."""
        ids = torch.tensor([list(prompt) for prompt in prompts])
        start = time.perf_counter()
        out = self._model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=num_out
        )
        return out[:, ids.shape[1] :].tolist(), time.perf_counter() - start


def ours(
    address: str, prompts: Sequence[Sequence[int]], at_once: int, num_out: int
) -> tuple[list[Answer], float]:
    """Answer the prompts through the cluster; answers and seconds."""
    start = time.perf_counter()
    answers = asyncio.run(complete_all(address, prompts, at_once=at_once, max_tokens=num_out, **OPTIONS))
    seconds = time.perf_counter() - start
    for answer in answers:
        if not isinstance(answer, Answer):
            raise answer
    return [answer for answer in answers if isinstance(answer, Answer)], seconds


class Prompts:
    """Fresh prompts of any length, so that no prefix cache helps."""

    def __init__(self, model_dir: Path) -> None:
        self._corpus = [token for prompt in varied_prompts(model_dir, 400, 100_000) for token in prompt]
        self._at = 0

    def take(self, count: int, length: int) -> list[list[int]]:
        """Return `count` prompts of `length` tokens that were not returned before."""
        taken = []
        for _ in range(count):
            self._at += 1
            start = (self._at * 131) % (len(self._corpus) - length)
            taken.append([1000 + self._at, *self._corpus[start : start + length - 1]])
        return taken


def measure(
    reference: Transformers, address: str, prompts: Prompts, rounds: int
) -> dict[str, dict[str, list[float]]]:
    """Measure everything `rounds` times, reference and cluster in turn; tokens/s."""
    speeds: dict[str, dict[str, list[float]]] = {name: {"hf": [], "baton": []} for name in TARGETS}
    ours(address, prompts.take(8, NUM_IN), 8, 8)
    reference.generate(prompts.take(1, NUM_IN), 8)
    for round_ in range(rounds):
        print(f"round {round_ + 1} of {rounds}", file=sys.stderr)
        batch = prompts.take(8, NUM_IN)
        expected, seconds = reference.generate(batch, NUM_OUT)
        speeds["8 at once"]["hf"].append(8 * NUM_OUT / seconds)
        speeds["32 at once"]["hf"].append(8 * NUM_OUT / seconds)
        answers, seconds = ours(address, batch, 8, NUM_OUT)
        speeds["8 at once"]["baton"].append(8 * NUM_OUT / seconds)
        same = sum(list(answer.token_ids) == tokens for answer, tokens in zip(answers, expected, strict=True))
        if same < len(batch) - 1:
            raise SystemExit(f"only {same} of {len(batch)} answers equal Transformers'")
        _, seconds = ours(address, prompts.take(64, NUM_IN), 32, NUM_OUT)
        speeds["32 at once"]["baton"].append(64 * NUM_OUT / seconds)

        _, seconds = reference.generate(prompts.take(1, NUM_IN), NUM_OUT)
        speeds["1 at a time"]["hf"].append(NUM_OUT / seconds)
        _, seconds = ours(address, prompts.take(3, NUM_IN), 1, NUM_OUT)
        speeds["1 at a time"]["baton"].append(3 * NUM_OUT / seconds)

        for prompt in prompts.take(3, PREFILL):
            speeds["prefill"]["hf"].append(PREFILL / reference.generate([prompt], 1)[1])
            speeds["prefill"]["baton"].append(PREFILL / ours(address, [prompt], 1, 1)[1])
    return speeds


def handoff_ms(client: Client, prompts: Prompts, count: int = 5) -> float:
    """Return the median exposed time of handing over a 1024-token prompt, milliseconds."""
    answers = [client.complete(token_ids=p, max_tokens=2, **OPTIONS) for p in prompts.take(count, 1024)]
    return 1e3 * statistics.median(answer.finished.handoff.exposed_s for answer in answers)


def main() -> None:
    """Run, print the table, write JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3, help="times that everything is measured (default 3)")
    parser.add_argument("--json", type=Path, help="write the figures here")
    args = parser.parse_args()

    model_dir = models.fetch(progress=models.show_progress)
    reference, prompts = Transformers(model_dir), Prompts(model_dir)
    start = time.perf_counter()
    with LocalCluster() as cluster, Client(cluster.gateway_address) as client:
        ready_s = time.perf_counter() - start
        speeds = measure(reference, cluster.gateway_address, prompts, args.rounds)
        exposed_ms = handoff_ms(client, prompts)

    console = Console()
    table = Table(
        "", "HF tok/s", "baton tok/s", "ratio", "at least", "goal", title=f"{NUM_IN} in / {NUM_OUT} out"
    )
    figures = {}
    for name, (least, goal) in TARGETS.items():
        hf, baton = (statistics.median(speeds[name][who]) for who in ("hf", "baton"))
        figures[name] = {"hf": hf, "baton": baton, "ratio": baton / hf}
        colour = "green" if baton / hf >= goal else "yellow" if baton / hf >= least else "red"
        table.add_row(
            name, f"{hf:.1f}", f"{baton:.1f}", f"[{colour}]{baton / hf:.2f}[/]", f"{least:.2f}", f"{goal:.2f}"
        )
    console.print(table)
    console.print(f"ready after {ready_s:.1f} s (at most 10, goal 5)")
    console.print(f"exposed hand-off of 1024 tokens over shared memory: {exposed_ms:.1f} ms (at most 5)")
    if args.json:
        args.json.write_text(json.dumps(figures | {"ready_s": ready_s, "exposed_ms": exposed_ms}, indent=2))


if __name__ == "__main__":
    main()
