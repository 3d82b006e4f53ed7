"""A whole cluster on GPUs, real processes: `python -m bench.gpu_cluster MODEL`.

MODEL is a directory with config.json and weights, or with random_weights.json in their place. Each
scenario is a gateway, a prefill and a decode worker:

    vault      one GPU, both workers attached to a vault: one set of weights, one pool
    two_gpus   a GPU each, hand-off over CUDA IPC
    one_gpu    one GPU, each worker with memory of its own

In each, answers through the gateway must be, token for token, those of one engine in one process on
the same chunks and steps; then hand-offs of a long prompt are timed, either worker is killed in the
middle of one and started again, and answers are compared once more. The status is 1 if anything differs.

With `--batch-invariant` the one engine cuts prompts otherwise and answers them all at once, and its tokens
must be the same still.

Without a GPU: `--backend cpu --lengths 600 100 7 --scenario vault one_gpu`, with a small model.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from baton.client import Client
from baton.cluster import LocalCluster
from baton.errors import BatonError
from baton.process import ServiceProcess, child_environ
from engine.config import EngineConfig
from tests.support.byte_tokenizer import write_byte_tokenizer

NUM_OUT = 24
SEEDS = (1, 2, 3)  # of prompts: at first, and after either worker was killed
MODEL_NAME = "bench"
VAULT_SHARE = 0.2  # of prefill: it computes in decode's blocks
START_TIMEOUT_S = 100.0


@dataclass(frozen=True)
class Setup:
    """What all scenarios have in common."""

    model: str
    backend: str
    lengths: tuple[int, ...]
    chunk: int
    kv_bytes: int
    rounds: int
    batch_invariant: bool = False

    def engine(self, chunk: int = 0) -> EngineConfig:
        return EngineConfig(
            self.model,
            MODEL_NAME,
            backend=self.backend,
            max_step_tokens=chunk or self.chunk,
            batch_invariant=self.batch_invariant,
            context_length=2 * max(self.lengths),
            kv_bytes=self.kv_bytes,
        )

    def flags(self, share: float = 1.0) -> list[str]:
        engine = self.engine()
        names = ("backend", "max_step_tokens", "context_length")
        fields = {name: getattr(engine, name) for name in names}
        fields["kv_bytes"] = round(share * self.kv_bytes)
        given = [
            part for name, value in fields.items() for part in (f"--{name.replace('_', '-')}", str(value))
        ]
        return [*given, "--batch-invariant"] if self.batch_invariant else given

    def prompts(self, seed: int) -> list[list[int]]:
        return [self.prompt(length, seed * 100 + index) for index, length in enumerate(self.lengths)]

    def prompt(self, length: int, seed: int) -> list[int]:
        """Random token ids; those of two seeds have no common prefix."""
        return random.Random(seed).choices(range(3, 250), k=length)


# One engine in one process.


def reference(setup: Setup, gpu: int) -> None:
    """Child process: answer all prompts, one at a time or all at once, and print the tokens as JSON."""
    from services.worker.gpu import put_gpu_first

    if setup.backend == "cuda":
        put_gpu_first(gpu)
    from engine.build import build_engine
    from engine.events import RequestFailed, StepEvents, TokenSampled
    from engine.request import Request
    from engine.sampling_params import SamplingParams

    prompts = {
        f"{seed}-{number}": prompt for seed in SEEDS for number, prompt in enumerate(setup.prompts(seed))
    }
    answers: dict[str, list[int]] = {name: [] for name in prompts}
    done = threading.Semaphore(0)

    def on_events(step: StepEvents) -> None:
        for event in step.events:
            if isinstance(event, RequestFailed):
                raise event.error
            if isinstance(event, TokenSampled):
                answers[event.request_id].append(event.token.token_id)
                if event.finish_reason is not None:
                    done.release()

    # An engine that depends on nothing but the request may as well run other steps than the cluster's.
    together = setup.batch_invariant
    built = build_engine(setup.engine(3 * setup.chunk // 2 if together else 0), on_events)
    built.engine.start()
    sampling = SamplingParams(max_tokens=NUM_OUT, temperature=0, ignore_eos=True)
    for name, prompt in prompts.items():
        built.engine.submit(Request(name, prompt, len(prompt), sampling))
        if not together and not done.acquire(timeout=60):
            raise SystemExit("the engine gave no answer")
    for _ in prompts if together else ():
        if not done.acquire(timeout=60):
            raise SystemExit("the engine gave no answer")
    built.engine.stop()
    by_seed = {
        str(seed): [answers[name] for name in prompts if name.startswith(f"{seed}-")] for seed in SEEDS
    }
    print(json.dumps(by_seed), flush=True)


class Reference:
    """That process, running beside the first scenario; asked when its answers are needed."""

    def __init__(self, arguments: Sequence[str]) -> None:
        command = [sys.executable, "-m", "bench.gpu_cluster", *arguments, "--reference"]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=child_environ({}))
        self._answers: dict[str, list[list[int]]] | None = None

    def answers(self, seed: int) -> list[list[int]]:
        if self._answers is None:
            out, _ = self._process.communicate(timeout=START_TIMEOUT_S)
            self._answers = json.loads(out.splitlines()[-1])
        return self._answers[str(seed)]


# A cluster.


@dataclass
class Scenario:
    """A running cluster and what was found wrong with it."""

    name: str
    setup: Setup
    cluster: LocalCluster
    client: Client
    wrong: list[str]

    def worker(self, role: str) -> ServiceProcess:
        return next(worker for worker in self.cluster.workers if worker.role == role)

    def figures(self, role: str) -> dict[str, float]:
        """Scrape a worker's metrics."""
        assert self.worker(role).ready is not None
        address = self.worker(role).ready["metrics_address"]
        text = urllib.request.urlopen(f"http://{address}/metrics", timeout=5).read().decode()
        lines = [line.rpartition(" ") for line in text.splitlines() if line and line[0] != "#"]
        return {name: float(value) for name, _, value in lines}

    def total(self, role: str, name: str) -> float:
        """Sum of a metric over its labels."""
        return sum(value for key, value in self.figures(role).items() if key.partition("{")[0] == name)

    def compare(self, reference: Reference, seed: int, when: str) -> None:
        wanted, same = reference.answers(seed), 0
        for prompt, want in zip(self.setup.prompts(seed), wanted, strict=True):
            got = self.answer(prompt)
            same += got == want
            if got != want:
                # What was computed and rounded otherwise stays so; what was spoilt on its way does not.
                again = self.answer(prompt)
                now = "right" if again == want else "the same" if again == got else "another answer"
                self.wrong.append(
                    f"{when}: {len(prompt)} tokens in, differs at token {first_difference(got, want)} of "
                    f"{len(got)}; asked again: {now}"
                )
        print(f"  {when}: {same} of {len(wanted)} answers equal the one engine's, token for token")

    def answer(self, prompt: list[int]) -> list[int]:
        answer = self.client.complete(
            token_ids=prompt, max_tokens=NUM_OUT, temperature=0.0, ignore_eos=True, timeout_s=60
        )
        return list(answer.token_ids)

    def handoffs(self) -> None:
        """Time hand-offs of the longest prompt."""
        exposed, moved, computed = [], [], []
        for number in range(self.setup.rounds + 1):
            before = self.figures("prefill")
            prompt = self.setup.prompt(self.setup.lengths[0], 7000 + number)
            self.client.complete(token_ids=prompt, max_tokens=2, temperature=0.0, ignore_eos=True)
            after = self.figures("prefill")
            gained = {name: value - before.get(name, 0.0) for name, value in after.items()}
            if number:  # the first one warms up
                exposed.append(sum_of(gained, "baton_handoff_exposed_seconds_sum") * 1e3)
                moved.append(sum_of(gained, "baton_handoff_bytes_total"))
                computed.append(sum_of(gained, "baton_request_prefill_time_seconds_sum") * 1e3)
        transports = {name for name, value in after.items() if "handoff_blocks_total" in name and value}
        print(
            f"  hand-off of {self.setup.lengths[0]} tokens, {self.setup.rounds} times: exposed p50 "
            f"{statistics.median(exposed):.3f} ms, max {max(exposed):.3f} ms; "
            f"{max(moved) / 2**20:.0f} MiB moved; computed in {statistics.median(computed):.1f} ms; "
            f"{', '.join(sorted(transports))}"
        )
        if self.name == "vault" and max(moved):
            self.wrong.append(f"{max(moved):.0f} bytes moved on one pool")

    def kill(self, role: str) -> None:
        """End a worker in the middle of a hand-off, start it again, and see that nothing is left over."""
        outcome: list[str] = []

        def ask() -> None:
            prompt = self.setup.prompt(self.setup.lengths[0], 9000 + (role == "prefill"))
            try:
                answer = self.client.complete(
                    token_ids=prompt, max_tokens=4, temperature=0.0, ignore_eos=True, timeout_s=40
                )
                outcome.append(f"answered, {len(answer.token_ids)} tokens")
            except BatonError as error:
                outcome.append(f"refused: {str(error)[:60]}")

        asked = threading.Thread(target=ask)
        steps = self.total("prefill", "baton_engine_steps_total")
        asked.start()
        while self.total("prefill", "baton_engine_steps_total") < steps + 2:
            time.sleep(0.002)
        victim = self.worker(role)
        self.cluster.kill(victim)
        start = time.monotonic()
        reborn = self.cluster.restart(victim)
        ready_s = time.monotonic() - start
        asked.join()
        assert reborn.ready is not None
        print(
            f"  kill -9 {role} in a hand-off: reborn and listed after {ready_s:.2f} s "
            f"(its own start {reborn.ready['start_s']} s); the request: {outcome[0]}"
        )
        if self.name == "vault" and ready_s > 5.0:
            self.wrong.append(f"{role} took {ready_s:.2f} s to be back on a warm vault")
        for other in ("prefill", "decode"):
            deadline = time.monotonic() + 15
            while self.total(other, "baton_kv_blocks_used") and time.monotonic() < deadline:
                time.sleep(0.05)
            if self.total(other, "baton_kv_blocks_used"):
                self.wrong.append(f"{other} still holds blocks 15 s after {role} was killed")


def first_difference(got: Sequence[int], want: Sequence[int]) -> int:
    return next((i for i, pair in enumerate(zip(got, want, strict=False)) if pair[0] != pair[1]), -1)


def sum_of(figures: dict[str, float], name: str) -> float:
    return sum(value for key, value in figures.items() if key.partition("{")[0] == name)


def used_memory() -> str:
    """Memory in use on each GPU, as the driver counts it."""
    if shutil.which("nvidia-smi") is None:
        return "no GPU"
    command = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    out = subprocess.run(command, capture_output=True, text=True, timeout=20).stdout
    return " + ".join(f"{int(line) / 1024:.1f}" for line in out.split()) + " GiB"


@contextlib.contextmanager
def vault(setup: Setup, directory: Path) -> Iterator[list[str]]:
    """Run a vault on GPU 0; yields the flags of workers that attach to it."""
    socket = str(directory / "socket")
    pool_bytes = round((1 + VAULT_SHARE) * setup.kv_bytes)
    flags = ["--socket", socket, "--model", setup.model, "--model-name", MODEL_NAME]
    flags += ["--backend", setup.backend, "--kv-bytes", str(pool_bytes)]
    process = ServiceProcess("vault", "vault", flags, directory / "vault.log", child_environ({}))
    try:
        deadline = time.monotonic() + START_TIMEOUT_S
        while not process.poll_ready():
            if time.monotonic() > deadline:
                raise SystemExit(process.obituary())
            time.sleep(0.02)
        assert process.ready is not None
        print(f"  the vault holds {process.ready}; in use: {used_memory()}")
        yield ["--vault", socket]
        lines = [line for line in process.log.read_text().splitlines() if line.startswith("{")]
        print(
            f"  the vault loaded weights {sum('weights_load_s' in line for line in lines)} time(s), and saw:"
        )
        for line in lines:
            if "tached" in line:
                seen = json.loads(line)
                print(f"    {seen['ts'][11:23]} {seen['message']} {seen['worker']}, {seen['blocks']}")
    finally:
        process.terminate()
        process.wait(15)
        print(f"  the vault ended with status {process.exit_status}; in use: {used_memory()}")
        process.kill()


def run(name: str, setup: Setup, tokenizer: Path, directory: Path, one: Reference) -> list[str]:
    """Run one scenario; returns what was wrong."""
    print(f"{name}:", flush=True)
    with contextlib.ExitStack() as stack:
        shared = stack.enter_context(vault(setup, directory)) if name == "vault" else []
        cluster = LocalCluster(
            setup.model,
            model_name=MODEL_NAME,
            tokenizer=str(tokenizer),
            prefill_args=[*setup.flags(VAULT_SHARE if shared else 1.0), *shared],
            decode_args=[*setup.flags(), *shared, "--gpu", "1" if name == "two_gpus" else "0"],
            run_dir=directory / name,
            start_timeout_s=START_TIMEOUT_S,
        )
        start = time.monotonic()
        stack.enter_context(cluster)
        client = stack.enter_context(Client(cluster.gateway_address))
        scenario = Scenario(name, setup, cluster, client, [])
        print(f"  ready after {time.monotonic() - start:.1f} s; in use: {used_memory()}", flush=True)
        try:
            scenario.compare(one, 1, "at first")
            scenario.handoffs()
            scenario.kill("decode")
            scenario.compare(one, 2, "with decode reborn")
            scenario.kill("prefill")
            scenario.compare(one, 3, "with prefill reborn")
            print(f"  in use: {used_memory()}", flush=True)
        except Exception as error:
            scenario.wrong.append(f"{type(error).__name__}: {error}")
            for worker in cluster.workers:
                print(worker.obituary(), file=sys.stderr)
    return [f"{name}: {what}" for what in scenario.wrong]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("model")
    parser.add_argument("--scenario", nargs="+", default=["vault", "two_gpus", "one_gpu"])
    parser.add_argument("--backend", default="cuda")
    parser.add_argument("--lengths", nargs="+", type=int, default=[8192, 1000, 130, 64, 1])
    parser.add_argument("--chunk", type=int, default=1024)
    parser.add_argument("--kv-gib", type=float, default=4.0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch-invariant", action="store_true")
    parser.add_argument("--reference", action="store_true", help="only answer by one engine, as JSON")
    parser.add_argument("--gpu", type=int, default=0, help="GPU of the one engine")
    options = parser.parse_args(argv)
    kv_bytes = round(options.kv_gib * 2**30)
    setup = Setup(
        options.model,
        options.backend,
        tuple(options.lengths),
        options.chunk,
        kv_bytes,
        options.rounds,
        options.batch_invariant,
    )
    if options.reference:
        reference(setup, options.gpu)
        return 0
    directory = Path(tempfile.mkdtemp(prefix="baton-gpu-"))
    tokenizer = write_byte_tokenizer(directory / "tokenizer")
    one = Reference(sys.argv[1:] if argv is None else argv)
    wrong = []
    for name in options.scenario:
        wrong += run(name, setup, tokenizer, directory, one)
    for what in wrong:
        print(f"WRONG  {what}")
    print(f"{'FAILED' if wrong else 'passed'}; logs in {directory}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
