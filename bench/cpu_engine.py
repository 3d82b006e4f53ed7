"""The engine alone beside Hugging Face `generate`: same weights, same prompts, float32, one run.

    python bench/cpu_engine.py [--model DIR] [--threads 2] [--repeats 3]

Prints one line a workload: ours, theirs, ratio. Rounds alternate and the best of each is taken, so a
machine that is busy for a while disturbs both alike.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from engine.backends.cpu.backend import CpuBackend
from engine.kv.layout import CacheGroup, CacheKind
from engine.models.build import build_transformer
from engine.models.load import open_model
from engine.request import Request
from engine.runner.model_runner import ModelRunner
from engine.sampler.sampler import Sampler
from engine.sampling_params import SamplingParams
from engine.step import ScheduledRow, SchedulerOutput

BLOCK_SIZE = 16
CHUNK = 512
PROMPT_TOKENS = 128
OUTPUT_TOKENS = 64
GREEDY = SamplingParams(temperature=0.0)


class Ours:
    """Runner and pool, with a schedule of its own: prompts one by one, then all rows together."""

    def __init__(self, model: str, num_blocks: int) -> None:
        files = open_model(model)
        architecture = files.architecture
        backend = CpuBackend()
        started = time.perf_counter()
        transformer = build_transformer(architecture, files.source, backend, architecture.max_positions)
        self.load_s = time.perf_counter() - started
        shape = (architecture.num_layers, 2, architecture.num_kv_heads, BLOCK_SIZE, architecture.head_dim)
        layers = tuple(range(architecture.num_layers))
        group = CacheGroup("attention", CacheKind.ATTENTION, layers, BLOCK_SIZE, shape, "float32")
        pool = backend.allocate_pool(group, num_blocks, None)
        pool.blocks.zero_()
        self._runner = ModelRunner(transformer, backend, pool, Sampler(frozenset()))
        self._blocks = list(range(num_blocks))
        random.Random(0).shuffle(self._blocks)

    def generate(self, prompts: Sequence[Sequence[int]], num_tokens: int) -> list[list[int]]:
        free = iter(self._blocks)
        requests = []
        for index, prompt in enumerate(prompts):
            table = [next(free) for _ in range(-(-(len(prompt) + num_tokens) // BLOCK_SIZE))]
            requests.append(Request(str(index), list(prompt), len(prompt), GREEDY, block_ids=[table]))
        for request in requests:
            while request.num_output_tokens == 0:
                self._step([request], min(CHUNK, request.num_uncomputed_tokens))
        while requests[0].num_output_tokens < num_tokens:
            self._step(requests, 1)
        return [request.token_ids[request.num_prompt_tokens :] for request in requests]

    def _step(self, requests: Sequence[Request], num_tokens: int) -> None:
        rows = tuple(
            ScheduledRow(
                request, request.num_computed_tokens, num_tokens, request.num_uncomputed_tokens == num_tokens
            )
            for request in requests
        )
        result = self._runner.launch(SchedulerOutput(0, rows)).wait()
        for request in requests:
            request.num_computed_tokens += num_tokens
            if request.request_id in result.sampled:
                request.token_ids.append(result.sampled[request.request_id].token_id)


class Theirs:
    """Transformers in float32."""

    def __init__(self, model: str) -> None:
        from transformers import AutoModelForCausalLM

        self._model = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
        self._model.generation_config.eos_token_id = None
        self._model.generation_config.pad_token_id = 0

    def generate(self, prompts: Sequence[Sequence[int]], num_tokens: int) -> list[list[int]]:
        ids = torch.tensor([list(prompt) for prompt in prompts])
        with torch.inference_mode():
            out = self._model.generate(
                ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=num_tokens
            )
        tokens: list[list[int]] = out[:, ids.shape[1] :].tolist()
        return tokens


def best(*calls: Callable[[], object], repeats: int) -> list[float]:
    """Least seconds of each call; rounds alternate, the first is not counted."""
    seconds = [float("inf")] * len(calls)
    for turn in range(repeats + 1):
        for index, call in enumerate(calls):
            started = time.perf_counter()
            call()
            if turn:
                seconds[index] = min(seconds[index], time.perf_counter() - started)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=str(Path.home() / ".cache/baton/models/SmolLM2-135M-Instruct"))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    ours, theirs = Ours(options.model, num_blocks=512), Theirs(options.model)
    rng = random.Random(1)
    prompts = [[rng.randrange(10, 49000) for _ in range(PROMPT_TOKENS)] for _ in range(32)]
    print(f"weights loaded and packed in {ours.load_s:.2f} s; {options.threads} threads")
    print(f"{'workload':34s} {'ours':>9s} {'HF':>9s} {'ratio':>7s}")

    def row(name: str, ours_tokens: int, theirs_tokens: int, seconds: Sequence[float]) -> None:
        mine, other = ours_tokens / seconds[0], theirs_tokens / seconds[1]
        print(f"{name:34s} {mine:9.1f} {other:9.1f} {mine / other:6.2f}x", flush=True)

    for batch, their_batch in ((1, 1), (8, 8), (32, 8)):
        seconds = best(
            lambda n=batch: ours.generate(prompts[:n], OUTPUT_TOKENS),
            lambda n=their_batch: theirs.generate(prompts[:n], OUTPUT_TOKENS),
            repeats=options.repeats,
        )
        name = f"{batch} at once (HF batch {their_batch}), out tok/s"
        row(name, batch * OUTPUT_TOKENS, their_batch * OUTPUT_TOKENS, seconds)
    for length in (512, 1024):
        prompt = [[rng.randrange(10, 49000) for _ in range(length)]]
        seconds = best(
            lambda p=prompt: ours.generate(p, 1),
            lambda p=prompt: theirs.generate(p, 1),
            repeats=options.repeats,
        )
        row(f"prefill {length}, tok/s", length, length, seconds)
    same = ours.generate(prompts[:4], OUTPUT_TOKENS) == [
        theirs.generate([prompt], OUTPUT_TOKENS)[0] for prompt in prompts[:4]
    ]
    print(f"greedy tokens of 4 prompts equal: {same}")


if __name__ == "__main__":
    main()
