"""One engine step on a GPU: its time, the host's share, each kind of kernel beside the floor of its bytes.

python -m bench.cuda_step --shape llama-8b --decode 1x1024 256x384 --prefill 2048@0 2048@6144

Random weights; the pool holds random keys and values, so nothing has to be computed first. Checked in the
same run: logits are finite, and a replayed graph draws what the same step drew without one.
"""

from __future__ import annotations

import argparse
import collections
import cProfile
import io
import itertools
import json
import pstats
import re
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from bench.kernels.timing import read_ceiling
from engine.backends.cuda.backend import CudaBackend
from engine.build import kv_layout
from engine.config import EngineConfig
from engine.models.build import build_transformer
from engine.models.load import RANDOM_WEIGHTS, open_model
from engine.request import Request
from engine.runner.cuda.runner import CudaRunner
from engine.runner.cuda.warmup import warm_up
from engine.sampling_params import SamplingParams
from engine.step import ScheduledRow, SchedulerOutput

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
SHAPES: dict[str, dict[str, object]] = {
    "llama-8b": {
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
        "max_position_embeddings": 131072,
        "rope_theta": 500000.0,
        "rope_scaling": LLAMA3,
        "eos_token_id": 128009,
    },
    "qwen3-0.6b": {
        "architectures": ["Qwen3ForCausalLM"],
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 151936,
        "max_position_embeddings": 40960,
        "rope_theta": 1000000.0,
        "tie_word_embeddings": True,
        "eos_token_id": 151645,
    },
}
BLOCK = 64


class Bench:
    """A model and a runner over a pool of random contents."""

    def __init__(self, shape: str, pool_tokens: int, read_rate: float, profile: bool) -> None:
        self._read_rate, self._profile = read_rate, profile
        directory = Path(tempfile.mkdtemp())
        (directory / "config.json").write_text(json.dumps(SHAPES[shape]))
        (directory / RANDOM_WEIGHTS).write_text('{"seed": 0}')
        config = EngineConfig(str(directory), shape, backend="cuda", block_size=BLOCK).resolved()
        marks = [time.perf_counter()]
        files = open_model(config.model)
        self._backend = CudaBackend(torch.bfloat16)
        marks.append(time.perf_counter())
        context = min(files.architecture.max_positions, pool_tokens)
        self._model = build_transformer(files.architecture, files.source, self._backend, context)
        torch.cuda.synchronize()
        marks.append(time.perf_counter())
        group = kv_layout(config, files).groups[0]
        free = warm_up(config, self._model, self._backend, group, context)
        marks.append(time.perf_counter())
        pool = self._backend.allocate_pool(group, pool_tokens // BLOCK, None)
        pool.blocks.normal_()
        self._runner = CudaRunner(config, frozenset(), self._model, self._backend, pool, context)
        self._vocab = files.architecture.vocab_size
        self._num_blocks = pool_tokens // BLOCK
        self._kv_bytes = group.block_bytes // BLOCK
        layer = self._model.layers[0]
        linears = [layer.attention.qkv, layer.attention.output]
        linears += [layer.feed_forward.gate_up, layer.feed_forward.down]  # type: ignore[attr-defined]
        sizes = [linear.in_features * linear.out_features * 2 for linear in linears]
        head = self._model.lm_head
        self._weight_bytes = sum(sizes) * len(self._model.layers) + head.in_features * head.out_features * 2
        backend, weights, warm = (b - a for a, b in itertools.pairwise(marks))
        print(
            f"{shape}: device {backend:.2f} s, weights {weights:.2f} s "
            f"({self._weight_bytes / 1e9:.1f} GB read a step), first steps {warm:.2f} s, "
            f"{free / 2**30:.1f} GiB free"
        )
        self._steps = 0

    def _requests(self, count: int, length: int) -> list[Request]:
        blocks = -(-(length + 200) // BLOCK)
        requests = []
        for index in range(count):
            ids = [(index * blocks + i) % self._num_blocks for i in range(blocks)]
            tokens = torch.randint(0, self._vocab, (length,)).tolist()
            sampling = SamplingParams(temperature=0.0)
            requests.append(Request(f"{self._steps}-{index}", tokens, length, sampling, block_ids=[ids]))
        return requests

    def _output(self, rows: Sequence[ScheduledRow]) -> SchedulerOutput:
        self._steps += 1
        return SchedulerOutput(self._steps, tuple(rows))

    def decode(self, count: int, context: int) -> None:
        """Steps of `count` rows that run ahead of the host, as the engine runs them."""
        requests = self._requests(count, context)
        first = [ScheduledRow(request, context - 1, 1, True) for request in requests]
        drawn = [self._runner.launch(self._output(first)).wait().sampled for _ in range(4)]
        assert all(result == drawn[0] for result in drawn[1:]), "a replayed graph draws other tokens"
        host, pending, steps = [], [], 30
        torch.cuda.synchronize()
        start = time.perf_counter()
        for step in range(steps):
            rows = [ScheduledRow(request, context + step, 1, True, step > 0) for request in requests]
            if step == 0:
                for request, token in zip(requests, drawn[0].values(), strict=True):
                    request.token_ids.append(token.token_id)
            begin = time.perf_counter()
            pending.append(self._runner.launch(self._output(rows)))
            host.append(time.perf_counter() - begin)
            if step:
                pending[-2].wait()
        pending[-1].wait()
        step_ms = (time.perf_counter() - start) / steps * 1e3
        read = self._weight_bytes + count * context * self._kv_bytes
        floor_ms = read / self._read_rate * 1e3
        print(
            f"decode {count} x {context}: {step_ms:.3f} ms a step, {count / step_ms * 1e3:.0f} tok/s, floor "
            f"{floor_ms:.3f} ms ({floor_ms / step_ms:.1%}), host {statistics.median(host) * 1e3:.3f} ms"
        )
        if self._profile:
            self._table(self._output(first))
            self._host_table(rows)

    def prefill(self, tokens: int, start: int) -> None:
        """A step of one chunk on `start` tokens of context."""
        (request,) = self._requests(1, start + tokens)
        output = self._output([ScheduledRow(request, start, tokens, True)])
        self._runner.launch(output).wait()
        times, host = [], []
        for _ in range(5):
            begin = time.perf_counter()
            pending = self._runner.launch(output)
            host.append(time.perf_counter() - begin)
            pending.wait()
            times.append(time.perf_counter() - begin)
        ms = statistics.median(times) * 1e3
        print(
            f"prefill {tokens} on {start}: {ms:.2f} ms, {tokens / ms * 1e3:.0f} tok/s, "
            f"host {statistics.median(host) * 1e3:.2f} ms"
        )
        if self._profile:
            self._table(output)
            self._host_table(output.rows)

    def _host_table(self, rows: Sequence[ScheduledRow]) -> None:
        """Where the host's time goes in `launch`; the profiler itself adds to calls of Python."""
        profile = cProfile.Profile()
        for _ in range(10):
            output = self._output(rows)
            profile.enable()
            pending = self._runner.launch(output)
            profile.disable()
            pending.wait()
        text = io.StringIO()
        pstats.Stats(profile, stream=text).sort_stats("tottime").print_stats(9)
        for line in text.getvalue().splitlines():
            if re.match(r" +\d", line):
                print("    host x 10: " + line[-110:].strip())

    def _table(self, output: SchedulerOutput) -> None:
        """Time by kernel of one step."""
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            self._runner.launch(output).wait()
        times: dict[str, list[float]] = collections.defaultdict(list)
        spans = []
        for event in profile.events() or []:
            times[_short(event.name)].append(event.device_time)
            spans.append((event.time_range.start, event.time_range.end))
        busy = sum(sum(values) for values in times.values())
        span = max(end for _, end in spans) - min(begin for begin, _ in spans)
        print(f"    {span / 1e3:.3f} ms from first to last kernel, {busy / 1e3:.3f} ms in kernels")
        ranked = sorted(times.items(), key=lambda item: -sum(item[1]))
        for name, values in ranked[:14]:
            total = sum(values)
            print(
                f"    {total:9.1f} us {total / busy:6.1%} {len(values):4} x {total / len(values):7.2f} {name}"
            )


def _short(name: str) -> str:
    return re.sub(r"<.*|\(.*", "", name).replace("void ", "")[-90:]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=SHAPES, default="llama-8b")
    parser.add_argument("--decode", nargs="*", default=["1x1024", "256x384"], help="rows x context")
    parser.add_argument("--prefill", nargs="*", default=["2048@0", "2048@6144"], help="tokens@context")
    parser.add_argument("--pool-tokens", type=int, default=240_000)
    parser.add_argument("--profile", action="store_true", help="time by kernel")
    arguments = parser.parse_args()
    rate = read_ceiling(2 << 30)
    print(f"{torch.cuda.get_device_name()}, reads {rate / 1e12:.2f} TB/s")
    bench = Bench(arguments.shape, arguments.pool_tokens, rate, arguments.profile)
    for case in arguments.decode:
        count, context = map(int, case.split("x"))
        bench.decode(count, context)
    for case in arguments.prefill:
        tokens, start = map(int, case.split("@"))
        bench.prefill(tokens, start)


if __name__ == "__main__":
    main()
