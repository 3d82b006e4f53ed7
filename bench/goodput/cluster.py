"""A cluster under measurement: started, warmed, watched, and measured at one rate after another.

Whatever would waste the machine's time is given up at once, with the end of the logs: a process that dies,
a start that takes too long, a warm-up or a rate at which most requests fail, what is not done in time.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
import zlib
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from baton.client import Client
from baton.cluster import LocalCluster
from baton.errors import BatonError, ClusterError
from bench.goodput.answers import Agreement, Answers
from bench.goodput.draw import even_seed
from bench.goodput.plan import Load, Step, Topology
from bench.goodput.point import GIVEN_UP, REFUSALS, Point, make_point
from bench.goodput.usage import Usage, cluster_pids
from loadtest.errors import LoadTestError
from loadtest.health import warnings
from loadtest.leftovers import blocks_held
from loadtest.measures import Targets
from loadtest.record import Outcome
from loadtest.run import Run, run
from loadtest.scenario import Scenario

BUSY_GATEWAY = 0.85  # of a core: one process of Python has no more
NUM_OUT = 32
_WARM_UP = 40
_PORT_TAKEN = ("in use", "EADDRINUSE")

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Serving:
    """What all clusters have in common.

    Attributes:
        model, tokenizer: directories, or a name that baton.models knows.
        worker_args: flags of all workers; role_args: role -> more.
        generators: processes that send.
        warm_batch: decode batches up to this are run before anything is measured.
        exact: whether an answer must not depend on what else runs.
    """

    model: str
    tokenizer: str
    gpus: tuple[int, ...]
    gateway_processes: int
    gateway_args: tuple[str, ...]
    worker_args: tuple[str, ...]
    role_args: Mapping[str, tuple[str, ...]]
    generators: int
    warm_batch: int
    start_timeout_s: float
    exact: bool


@contextlib.contextmanager
def started(serving: Serving, topology: Topology, logs: Path) -> Iterator[LocalCluster]:
    """Run a cluster.

    Raises:
        ClusterError: it did not come up; has the end of the log.
    """
    roles = {
        role: [*serving.worker_args, *serving.role_args.get(role, ())]
        for role in ("prefill", "decode", "both")
    }
    for attempt in (1, 2):
        cluster = LocalCluster(
            serving.model,
            topology.prefill,
            topology.decode,
            topology.both,
            model_name="bench",
            tokenizer=serving.tokenizer,
            gpus=serving.gpus,
            gateway_processes=serving.gateway_processes,
            gateway_args=serving.gateway_args,
            prefill_args=roles["prefill"],
            decode_args=roles["decode"],
            both_args=roles["both"],
            run_dir=logs / f"{topology.name}-{attempt}",
            start_timeout_s=serving.start_timeout_s,
        )
        try:
            cluster.start()
            break
        except ClusterError as error:
            # A port that was free when it was chosen may be taken by the time it is used.
            if attempt == 2 or not any(sign in str(error) for sign in _PORT_TAKEN):
                raise
    try:
        yield cluster
    finally:
        cluster.stop(grace_s=1.0)


class Measured:
    """One running cluster.

    Args:
        run: number of this call in the results.
        end_s: whatever still runs then is given up, by time.monotonic.
    """

    def __init__(
        self,
        serving: Serving,
        topology: Topology,
        cluster: LocalCluster,
        targets: Mapping[str, Targets],
        *,
        run: int,
        end_s: float,
    ) -> None:
        self._serving = serving
        self._topology = topology
        self._cluster = cluster
        self._targets = targets
        self._run = run
        self._end_s = end_s
        with Client(cluster.gateway_address) as client:
            model = client.models()[0]
        self._tokens = _token_range(model.vocab_size)
        lengths = [length for length in (1500, 400, 60, 7) if length + NUM_OUT < model.context_length]
        self._answers = Answers(cluster.gateway_address, lengths, self._tokens, NUM_OUT)

    def warm_up(self, loads: Sequence[Load]) -> Agreement:
        """Run batches of all sizes and some requests of each load; then ask the known prompts, alone.

        Raises:
            ClusterError: a process died, or most requests failed.
        """
        # A size of batch is slow when it is met first, and captured when it is met again: as these answers
        # end one after the other, the batch passes through all sizes.
        topology, many = self._topology, self._serving.warm_batch
        rows = many * (topology.decode + topology.both)
        falling = replace(loads[0], lengths="", input="fixed:32", output=f"uniform:8:{4 * many}")
        for load, at_once, requests in ((falling, rows, rows), *((load, 16, _WARM_UP) for load in loads)):
            scenario = self._scenario(load, seed=3, concurrency=at_once, requests=requests)
            self._check(self._guarded(run(scenario, processes=self._serving.generators)))
        alone: Agreement = self._guarded(self._answers.ask_alone())
        return alone

    def measure(self, step: Step) -> Point:
        """Run one rate.

        Raises:
            ClusterError: a process died, or most requests failed.
        """
        load = step.load
        # Of load and rate alone: every cluster gets the same requests at the same times, none of them twice.
        first = zlib.crc32(f"{load.name} {step.rate:g}".encode()) % 1_000_000

        def drawn(seed: int) -> Scenario:
            return self._scenario(load, seed=seed, rate=step.total_rate, duration_s=load.send_s)

        scenario = drawn(even_seed(drawn, load.warmup_s, load.warmup_s + load.window_s, first))
        begun = time.monotonic()
        done, agreement, cores = self._guarded(self._under_load(scenario, load))
        self._check(done)
        held = self._guarded(blocks_held(self._cluster.gateway_address))
        notes = warnings(done.healths)
        notes += [
            f"{name} used {100 * share:.0f} % of a core: it may be the bottleneck"
            for name, share in cores.items()
            if name.startswith("gateway") and share > BUSY_GATEWAY
        ]
        return make_point(
            step,
            done.records,
            self._targets,
            run=self._run,
            cores=cores,
            agreement=agreement,
            blocks_left=sum(held.values()),
            wall_s=time.monotonic() - begun,
            warnings=notes,
        )

    async def _under_load(self, scenario: Scenario, load: Load) -> tuple[Run, Agreement, dict[str, float]]:
        """Run a scenario; in its window count CPU time and ask the known prompts."""
        begun = asyncio.Event()
        sending = asyncio.create_task(
            run(scenario, processes=self._serving.generators, on_progress=lambda which, progress: begun.set())
        )
        waiting = asyncio.create_task(begun.wait())
        try:
            await asyncio.wait([sending, waiting], return_when=asyncio.FIRST_COMPLETED)
            # Each pause ends early if the run does: it has failed then.
            await asyncio.wait([sending], timeout=load.warmup_s)
            usage = Usage(cluster_pids(self._cluster))
            await asyncio.wait([sending], timeout=load.window_s / 4)
            again = asyncio.create_task(self._answers.ask_again())
            await asyncio.wait([sending], timeout=0.75 * load.window_s)
            cores = usage.cores()
            return await sending, await again, cores
        finally:
            waiting.cancel()
            sending.cancel()

    def _scenario(self, load: Load, **how: float) -> Scenario:
        first, last = self._tokens
        return Scenario(
            f"grpc://{self._cluster.gateway_address}",
            input=load.input,
            output=load.output,
            lengths=load.lengths,
            length_scale=load.length_scale,
            max_input=load.max_input,
            max_output=load.max_output,
            first_token=first,
            last_token=last,
            timeout_s=load.timeout_s,
            **how,  # type: ignore[arg-type]
        )

    def _guarded(self, work: Coroutine[object, object, T]) -> T:
        """Run something, as long as every process of the cluster lives."""
        try:
            return asyncio.run(self._while_all_live(work))
        except (BatonError, LoadTestError) as error:
            if isinstance(error, ClusterError):
                raise
            raise ClusterError(f"{type(error).__name__}: {error}\n{self._obituaries()}") from error

    async def _while_all_live(self, work: Coroutine[object, object, T]) -> T:
        task = asyncio.create_task(work)
        try:
            while not task.done():
                await asyncio.wait([task], timeout=0.2)
                if dead := self._cluster.new_deaths():
                    raise ClusterError("\n".join(process.obituary() for process in dead))
                if time.monotonic() > self._end_s:
                    raise ClusterError("the time is over, and it is not done")
            return task.result()
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    def _check(self, done: Run) -> None:
        excused = REFUSALS | GIVEN_UP
        failed = [one for one in done.records if one.outcome is not Outcome.OK and one.reason not in excused]
        if not done.records or len(failed) > len(done.records) // 2:
            why = f"{failed[0].reason} {failed[0].message}" if failed else "nothing was sent"
            raise ClusterError(
                f"{len(failed)} of {len(done.records)} requests failed, as: {why}\n{self._obituaries()}"
            )

    def _obituaries(self) -> str:
        processes = [self._cluster.gateway, *self._cluster.workers]
        return "\n".join(process.obituary() for process in processes)


def _token_range(vocab_size: int) -> tuple[int, int]:
    """Return ids to draw prompts from: without the special ones, which lie at either end."""
    last = min(100_000, vocab_size - 1)
    return min(1000, last // 4), last
