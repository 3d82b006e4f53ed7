"""One run: generator processes are started together, watched, and their records gathered."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from loadtest.errors import GeneratorError
from loadtest.health import Health
from loadtest.leftovers import WorkerSample, watch_workers
from loadtest.record import Json, Record
from loadtest.scenario import Scenario

_LINE_BYTES = 256 << 20
_HEAD_START_S = 0.2


@dataclass(frozen=True, slots=True)
class Progress:
    """Counts of one generator so far; `ttfts_s` are those not told before."""

    sent: int = 0
    in_flight: int = 0
    ok: int = 0
    cancelled: int = 0
    error: int = 0
    tokens: int = 0
    ttfts_s: list[float] = field(default_factory=list)


OnProgress = Callable[[int, Progress], None]
"""Called with the number of the generator and its progress."""


@dataclass(frozen=True, slots=True)
class Run:
    """What a run gave.

    Attributes:
        scenario: what was sent.
        started_unix_s: when the run's clock was 0.
        wall_s: from then until the last answer had ended.
        records: by index.
        healths: of the generators.
        samples: of the workers, once a second; empty: nobody to ask.
    """

    scenario: Scenario
    started_unix_s: float
    wall_s: float
    records: list[Record]
    healths: list[Health]
    samples: list[WorkerSample]


async def run(
    scenario: Scenario,
    *,
    processes: int = 1,
    keep_answers: bool = False,
    registry: str = "",
    on_progress: OnProgress = lambda which, progress: None,
) -> Run:
    """Send a scenario and wait for all of it; Ctrl-C ends it early, with what there is.

    Args:
        registry: address of a Baton gateway whose workers are sampled meanwhile; empty: none.
    Raises:
        GeneratorError: a generator could not start, or died.
    """
    generators = [_Generator(which, on_progress) for which in range(processes)]
    loop = asyncio.get_running_loop()
    watching: asyncio.Task[None] | None = None
    samples: list[WorkerSample] = []
    try:
        for generator in generators:
            await generator.start(scenario, processes, keep_answers)
        for generator in generators:
            await generator.ready()
        start_at = time.monotonic() + _HEAD_START_S
        started_unix_s = time.time() + _HEAD_START_S
        for generator in generators:
            await generator.say(json.dumps({"start_at": start_at}))
        if registry:
            watching = asyncio.create_task(watch_workers(registry, start_at, samples))
        with contextlib.suppress(NotImplementedError, RuntimeError, ValueError):  # not the main thread
            loop.add_signal_handler(signal.SIGINT, _stop, generators)
        await asyncio.gather(*(generator.finish() for generator in generators))
    finally:
        with contextlib.suppress(NotImplementedError, RuntimeError, ValueError):
            loop.remove_signal_handler(signal.SIGINT)
        if watching is not None:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
        await asyncio.gather(*(generator.close() for generator in generators))
    records = sorted(
        (record for generator in generators for record in generator.records), key=lambda record: record.index
    )
    wall_s = max((record.end_s for record in records), default=0.0)
    healths = [generator.health for generator in generators if generator.health is not None]
    return Run(scenario, started_unix_s, wall_s, records, healths, samples)


def _stop(generators: Sequence[_Generator]) -> None:
    for generator in generators:
        generator.stop()


class _Generator:
    """One generator process, from here."""

    def __init__(self, which: int, on_progress: OnProgress) -> None:
        self._which = which
        self._on_progress = on_progress
        self._process: asyncio.subprocess.Process | None = None
        self.records: list[Record] = []
        self.health: Health | None = None

    async def start(self, scenario: Scenario, shares: int, keep_answers: bool) -> None:
        """Start the process and give it its order."""
        here = str(Path(__file__).resolve().parent.parent)
        paths = os.pathsep.join(filter(None, (here, os.environ.get("PYTHONPATH", ""))))
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "loadtest.generator",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": paths},
            limit=_LINE_BYTES,
            start_new_session=True,  # Ctrl-C is for us to pass on
        )
        order = {
            "scenario": asdict(scenario),
            "which": self._which,
            "shares": shares,
            "keep_answers": keep_answers,
        }
        await self.say(json.dumps(order))

    async def ready(self) -> None:
        """Wait until it can start.

        Raises:
            GeneratorError: it cannot; says why.
        """
        message = await self._read()
        if "ready" not in message:
            raise GeneratorError(str(message.get("failed", "a generator died before it began")))

    async def finish(self) -> None:
        """Take what it says until it has said all.

        Raises:
            GeneratorError: it died before.
        """
        while message := await self._read():
            if progress := message.get("progress"):
                self._on_progress(self._which, Progress(**progress))  # type: ignore[arg-type]
            elif record := message.get("record"):
                self.records.append(Record.from_json(record))
            elif health := message.get("health"):
                self.health = Health(**health)  # type: ignore[arg-type]
        if self.health is None:
            raise GeneratorError(f"generator {self._which} died in the run")

    async def say(self, line: str) -> None:
        """Send it a line."""
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.write(line.encode() + b"\n")
        with contextlib.suppress(ConnectionError):
            await self._process.stdin.drain()

    def stop(self) -> None:
        """Have it end early."""
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.write(b"stop\n")

    async def close(self) -> None:
        """Wait for its end; a process that does not end by itself is killed."""
        if self._process is None or self._process.stdin is None:
            return
        self._process.stdin.close()
        try:
            await asyncio.wait_for(self._process.wait(), 10.0)
        except TimeoutError:
            self._process.kill()
            await self._process.wait()

    async def _read(self) -> dict[str, dict[str, Json]]:
        assert self._process is not None
        assert self._process.stdout is not None
        line = await self._process.stdout.readline()
        message: dict[str, dict[str, Json]] = json.loads(line) if line else {}
        return message
