"""One generator's clients: sends its share of the plan and keeps a record of each request."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import Iterator

from loadtest.errors import RequestFailed
from loadtest.health import Heartbeat
from loadtest.pacer import Pacer, Ready
from loadtest.plan import Plan, Request
from loadtest.prompts import Prompts
from loadtest.record import Call, Outcome, Record
from loadtest.scenario import Scenario
from loadtest.targets import Target


class Clients:
    """Runs share `which` of `shares` equal shares of a scenario on one event loop.

    Attributes:
        records: of the requests that have ended.
        in_flight: requests that have not.
        sent: requests sent so far.
    """

    def __init__(
        self, scenario: Scenario, target: Target, which: int = 0, shares: int = 1, keep_answers: bool = False
    ) -> None:
        self._scenario = scenario
        self._target = target
        self._which, self._shares = which, shares
        self._keep_answers = keep_answers
        self._plan = Plan(scenario)
        self._prompts = Prompts(scenario)
        self._requests = self._share()
        self._start_at = time.monotonic()
        self._stopping = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop = asyncio.get_running_loop()
        self._pacer = Pacer(self._requests, self._ready, self._due, self.now)
        self.heartbeat = Heartbeat()
        self.records: list[Record] = []
        self.sent = 0
        self._launched = 0
        if scenario.is_open_loop:
            self._pacer.fill()

    @property
    def in_flight(self) -> int:
        """Requests that have not ended."""
        return self.sent - len(self.records)

    def now(self) -> float:
        """Return the run's clock: seconds from its start."""
        return time.monotonic() - self._start_at

    async def run(self, start_at: float) -> None:
        """Send the whole share, from `start_at` on (time.monotonic), and wait for every answer."""
        self._start_at = start_at
        beating = asyncio.create_task(self.heartbeat.beat())
        try:
            if self._scenario.is_open_loop:
                await self._open_loop()
            else:
                await self._closed_loop()
        finally:
            beating.cancel()

    def stop(self) -> None:
        """Send nothing more, and give up what is under way."""
        self._stopping.set()
        self._pacer.stop()
        for task in self._tasks:
            task.cancel()

    async def _open_loop(self) -> None:
        self._pacer.begin()
        # What the pacer has started may not have reached this loop yet.
        while self._pacer.is_alive or self._launched < self._pacer.started or self._tasks:
            await asyncio.sleep(0.02)

    async def _closed_loop(self) -> None:
        await asyncio.sleep(max(0.0, -self.now()))
        scenario = self._scenario
        turns = len(range(self._which, scenario.concurrency, self._shares))

        async def take_turns() -> None:
            for request in self._requests:
                if self._stopping.is_set() or (scenario.duration_s and self.now() >= scenario.duration_s):
                    return
                await self._launch(self._ready(request))

        await asyncio.gather(*(take_turns() for _ in range(turns)))

    def _share(self) -> Iterator[Request]:
        """The first turns of this share's sessions."""
        size, turns = self._plan.size, self._scenario.turns
        indices = itertools.count(self._which * turns, self._shares * turns)
        return (
            self._plan.request(i) for i in itertools.takewhile(lambda i: size is None or i < size, indices)
        )

    def _ready(self, request: Request) -> Ready:
        record = Record(
            index=request.index,
            content=request.content,
            input_tokens=request.input_tokens,
            output_tokens=request.output_tokens,
            slow=request.read_delay_s > 0,
            planned_s=self.now() if request.at_s is None else request.at_s,
        )
        prompt = self._prompts.prompt(request)
        call = Call(request, prompt, record, self.now, lambda: None, self._keep_answers)
        return call, self._target.prepare(call)

    def _due(self, ready: Ready) -> None:
        self._loop.call_soon_threadsafe(self._begin, ready)

    def _begin(self, ready: Ready) -> None:
        self._launched += 1
        if not self._stopping.is_set():
            self._launch(ready)

    def _launch(self, ready: Ready) -> asyncio.Task[None]:
        task = self._loop.create_task(self._session(ready))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _session(self, ready: Ready) -> None:
        """Send a request, and the turns that follow it as long as each is answered."""
        while True:
            self.sent += 1
            await self._send(ready)
            call, _ = ready
            following = self._plan.following(call.request)
            if following is None or call.record.outcome is not Outcome.OK:
                return
            with contextlib.suppress(TimeoutError, asyncio.CancelledError):
                async with asyncio.timeout(self._scenario.think_s):
                    await self._stopping.wait()
            if self._stopping.is_set():
                return
            ready = self._ready(following)

    async def _send(self, ready: Ready) -> None:
        call, wire = ready
        record = call.record
        if call.request.at_s is None:
            record.planned_s = self.now()
        record.sent_s = self.now()
        hangs_up = self._arm_cancel(call)
        try:
            async with asyncio.timeout(self._scenario.timeout_s):
                await self._target.answer(call, wire)
            record.outcome = Outcome.OK
        except TimeoutError:
            record.reason, record.message = "TIMEOUT", f"no end within {self._scenario.timeout_s:g} s"
        except RequestFailed as error:
            record.reason, record.message = error.reason, str(error)[:300]
        except asyncio.CancelledError:
            record.outcome = Outcome.CANCELLED
            record.reason = "INTERRUPTED" if self._stopping.is_set() else ""
        except Exception as error:  # a bug of ours must not look like an answer
            record.reason, record.message = "GENERATOR_BUG", repr(error)[:300]
        finally:
            if hangs_up is not None:
                hangs_up.cancel()
            record.end_s = self.now()
            self.records.append(record)

    def _arm_cancel(self, call: Call) -> asyncio.TimerHandle | None:
        """Have the client hang up when the plan says so."""
        after = call.request.cancel_after
        task = asyncio.current_task()
        if after is None or task is None:
            return None
        if after == 0:
            return self._loop.call_later(call.request.cancel_delay_s, task.cancel)

        def hang_up() -> None:
            if sum(call.record.token_counts) >= after:
                task.cancel()

        call.on_tokens = hang_up
        return None
