"""What one hand-off exposes at service level: `python -m bench.handoff [--against TREE]`.

A prefill and a decode worker, each a process with a tiny random model, so that what is left is the way
through threads and sockets; this process asks them as a gateway does, one prompt at a time:

    own memory   blocks are written into the decode worker's memory (shared_memory)
    vault        the prompt is computed in the decode worker's blocks, and nothing moves

Exposed is from the end of the last chunk until decode may run, as the prefill worker counts it (until the
acknowledgement was back, in checkouts before ADR 9); gap is from the first token to the second as the
asking process gets them, a decode step and two messages included, and counted alike in all checkouts.
Every answer is compared with that of one co-located worker.

With --against the workers of another checkout (a worktree of an earlier commit) take turns with this
one's, prompt by prompt, and the ratios are of neighbouring prompts.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import queue
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import grpc

from baton.v1 import decode_pb2, decode_pb2_grpc, prefill_pb2, prefill_pb2_grpc, sampling_pb2
from tests.support.tiny_models import save_tiny_llama

GATEWAY = "bench"
NUM_OUT = 4
BLOCK_SIZE = 16
KV_BYTES = 4 << 20
START_TIMEOUT_S = 120.0
SCENARIOS = ("own memory", "vault")


class Process:
    """One service of a checkout."""

    def __init__(self, tree: Path, role: str, flags: Sequence[str], log: Path) -> None:
        environ = {**os.environ, "PYTHONPATH": str(tree), "PYTHONUNBUFFERED": "1"}
        self._log = log
        self._popen = subprocess.Popen(
            [sys.executable, "-m", "baton.child", f"services.{role}.main", *flags],
            cwd=tree,
            env=environ,
            stdin=subprocess.PIPE,
            stdout=log.open("wb"),
            stderr=subprocess.STDOUT,
        )

    def ready(self) -> dict[str, str]:
        """Wait for the facts of the ready line."""
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline and self._popen.poll() is None:
            for line in self._log.read_text().splitlines():
                if '"ready"' in line and line.startswith("{"):
                    facts: dict[str, str] = json.loads(line)
                    return facts
            time.sleep(0.05)
        raise SystemExit(f"FAILED to start:\n{self._log.read_text()[-2000:]}")

    def stop(self) -> None:
        self._popen.terminate()
        self._popen.wait(30)


@dataclass(frozen=True)
class Answer:
    """One prompt's."""

    tokens: list[int]
    exposed_s: float
    gap_s: float


class Workers:
    """The workers of one checkout, and a gateway's view of them."""

    def __init__(self, prefill: str, decode: str) -> None:
        channels = [grpc.insecure_channel(address) for address in (prefill, decode)]
        self._close = [channel.close for channel in channels]
        self._prefill = prefill_pb2_grpc.PrefillServiceStub(channels[0])
        self._decode = decode_pb2_grpc.DecodeServiceStub(channels[1])
        self._events: queue.SimpleQueue[tuple[float, decode_pb2.TokenEvent]] = queue.SimpleQueue()
        self._stream = self._decode.StreamSteps(decode_pb2.StreamStepsRequest(gateway_id=GATEWAY))
        next(self._stream)
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        self._number = 0

    def ask(self, prompt: Sequence[int]) -> Answer:
        """Run one request to its end."""
        self._number += 1
        sampling = sampling_pb2.SamplingParams(max_tokens=NUM_OUT, temperature=0, ignore_eos=True)
        reserve = decode_pb2.ReserveRequest(
            request_id=f"r{self._number}",
            token_ids=prompt,
            num_prompt_tokens=len(prompt),
            sampling=sampling,
            gateway_id=GATEWAY,
            transfer_id=f"t{self._number}",
        )
        prefill = prefill_pb2.PrefillRequest(
            request_id=reserve.request_id,
            token_ids=prompt,
            num_prompt_tokens=len(prompt),
            sampling=sampling,
            target=self._decode.Reserve(reserve, timeout=30).target,
        )
        call = self._prefill.Prefill(prefill, timeout=30)
        tokens = [next(call).first_token.token_id]
        first_s = time.perf_counter()
        handed_over = next(call).handed_over
        second_s = 0.0
        while len(tokens) < NUM_OUT:
            at, event = self._events.get(timeout=30)
            second_s = second_s or at
            tokens += event.token_ids
        return Answer(tokens, handed_over.exposed_s, second_s - first_s)

    def close(self) -> None:
        self._stream.cancel()
        self._reader.join()
        for close in self._close:
            close()

    def _read(self) -> None:
        with contextlib.suppress(grpc.RpcError):
            for message in self._stream:
                now = time.perf_counter()
                for event in message.events:
                    self._events.put((now, event))


@contextlib.contextmanager
def workers(tree: Path, model: Path, scenario: str) -> Iterator[Workers]:
    """Start the workers of a checkout; "both": one that does both."""
    directory = Path(tempfile.mkdtemp(prefix="baton-handoff-"))
    shape = ["--model", str(model), "--model-name", "tiny", "--block-size", str(BLOCK_SIZE)]
    engine = [*shape, "--kv-bytes", str(KV_BYTES), "--threads", "1", "--no-prefix-cache", "--port", "0"]
    with contextlib.ExitStack() as stack:

        def start(role: str, flags: Sequence[str]) -> dict[str, str]:
            process = Process(tree, role, [*flags, "--metrics-port", "-1"], directory / f"{role}.log")
            stack.callback(process.stop)
            return process.ready()

        if scenario == "vault":
            socket = str(directory / "vault")
            pool = ["--kv-bytes", str(2 * KV_BYTES)]
            start("vault", ["--socket", socket, "--backend", "cpu", *shape, *pool])
            engine += ["--vault", socket]
        if scenario == "both":
            address = start("both", engine)["address"]
            made = Workers(address, address)
        else:
            made = Workers(*(start(role, engine)["address"] for role in ("prefill", "decode")))
        stack.callback(made.close)
        yield made


def in_ms(values: Sequence[float]) -> str:
    p50, p90 = statistics.median(values), statistics.quantiles(values, n=10)[-1]
    return f"p50 {p50 * 1e3:6.3f}  p90 {p90 * 1e3:6.3f} ms"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--against", type=Path, help="another checkout, with its stubs made")
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=200)
    options = parser.parse_args()
    here = Path(__file__).resolve().parent.parent
    trees = {"this": here} | ({"against": options.against.resolve()} if options.against else {})
    model = save_tiny_llama(Path(tempfile.mkdtemp(prefix="baton-handoff-model-")))
    rng = random.Random(0)
    prompts = [[rng.randrange(3, 259) for _ in range(options.tokens)] for _ in range(options.rounds)]
    with workers(here, model, "both") as reference:
        expected = [reference.ask(prompt).tokens for prompt in prompts]
    for scenario in SCENARIOS:
        answers: dict[str, list[Answer]] = {name: [] for name in trees}
        with contextlib.ExitStack() as stack:
            sides = {
                name: stack.enter_context(workers(tree, model, scenario)) for name, tree in trees.items()
            }
            for side in sides.values():
                for prompt in prompts[:10]:
                    side.ask(prompt)
            for number, prompt in enumerate(prompts):
                for name in sorted(sides, reverse=bool(number % 2)):
                    answers[name].append(sides[name].ask(prompt))
        for name, given in answers.items():
            wrong = sum(answer.tokens != want for answer, want in zip(given, expected, strict=True))
            if wrong:
                raise SystemExit(f"FAILED: {scenario}, {name}: {wrong} of {len(given)} answers differ")
            exposed, gaps = [a.exposed_s for a in given], [a.gap_s for a in given]
            print(f"{scenario:10}  {name:7}  exposed {in_ms(exposed)}  |  gap {in_ms(gaps)}", flush=True)
        if len(answers) == 2:
            pairs = list(zip(answers["against"], answers["this"], strict=True))
            exposed_ratio = statistics.median(old.exposed_s / new.exposed_s for old, new in pairs)
            gap_ratio = statistics.median(old.gap_s / new.gap_s for old, new in pairs)
            print(f"{scenario:10}  against / this  exposed {exposed_ratio:.2f}  |  gap {gap_ratio:.2f}")
    print(f"{options.rounds} prompts of {options.tokens} tokens each; every answer equals one engine's")


if __name__ == "__main__":
    main()
