"""The engine thread: commands from other threads, events, failures, stopping."""

import dataclasses
import queue
import random
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from engine import engine as engine_module
from engine.engine import Engine
from engine.errors import (
    EngineError,
    EngineStoppedError,
    InvalidRequestError,
    OutOfBlocksError,
    QueueFullError,
    StepFailedError,
    UnknownRequestError,
)
from engine.events import Event, RequestCancelled, RequestFailed, ReservationGranted, StepEvents, TokenSampled
from engine.request import Request
from engine.sampling_params import SamplingParams
from engine.step import PendingStep, SchedulerOutput
from tests.support.engine_builders import (
    EOS,
    VOCAB_SIZE,
    create_config,
    create_layout,
    create_request,
    create_requests,
)
from tests.support.verifying_runner import VerifyingRunner, expected_tokens

TIMEOUT_S = 10.0


class GatedRunner(VerifyingRunner):
    """Needs a permit for each step; `entered` counts the steps that came to ask for one."""

    def __init__(self, num_blocks: int, late: bool = False) -> None:
        super().__init__(num_blocks, late=late)
        self.permits = threading.Semaphore(1 << 30)
        self.entered = threading.Semaphore(0)

    def launch(self, output: SchedulerOutput) -> PendingStep:
        permits = self.permits
        self.entered.release()
        assert permits.acquire(timeout=TIMEOUT_S)
        return super().launch(output)


class Bench:
    """An engine and what it said."""

    def __init__(
        self, num_blocks: int = 64, context_length: int = 1000, ahead: bool = False, **config: int
    ) -> None:
        self.runner = GatedRunner(num_blocks, late=ahead)
        self.steps: list[StepEvents] = []
        self.events: queue.Queue[Event] = queue.Queue()
        self.raises: Exception | None = None
        self.engine = Engine(
            dataclasses.replace(create_config(**config), ahead=ahead),
            self.runner,
            create_layout(),
            num_blocks,
            VOCAB_SIZE,
            context_length,
            EOS,
            self._on_events,
        )

    def _on_events(self, events: StepEvents) -> None:
        assert threading.current_thread().name == "engine"
        assert events.events
        if self.raises is not None:
            raise self.raises
        self.steps.append(events)
        for event in events.events:
            self.events.put(event)

    def wait_for(self, request_id: str, done: Callable[[Event], bool]) -> list[Event]:
        """Events of one request until one of them is the last."""
        seen = []
        while True:
            event = self.events.get(timeout=TIMEOUT_S)
            if event.request_id == request_id:
                seen.append(event)
                if done(event):
                    return seen

    def settle(self) -> None:
        """Wait until nothing is left in the engine."""
        deadline = time.monotonic() + TIMEOUT_S
        while self.engine._live and time.monotonic() < deadline:
            time.sleep(0.001)
        self.engine.check_invariants()
        assert not self.engine._live
        assert self.engine.stats().used_blocks == 0


def is_last(event: Event) -> bool:
    return isinstance(event, RequestFailed | RequestCancelled) or (
        isinstance(event, TokenSampled) and event.finish_reason is not None
    )


@pytest.fixture(params=[False, True], ids=["synchronous", "ahead"])
def bench(request: pytest.FixtureRequest) -> Iterator[Bench]:
    bench = Bench(ahead=request.param)
    bench.engine.start()
    yield bench
    bench.engine.stop()


def test_requests_from_many_threads(bench: Bench) -> None:
    requests = create_requests(40)
    expected = {r.request_id: expected_tokens(r, 8) for r in requests}
    threads = [
        threading.Thread(target=lambda part=requests[i::4]: [bench.engine.submit(r) for r in part])
        for i in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    bench.settle()
    drawn: dict[str, list[int]] = {}
    for step in bench.steps:
        ids = [event.request_id for event in step.events]
        assert len(set(ids)) == len(ids), "one event a request and step"
        for event in step.events:
            assert isinstance(event, TokenSampled)
            drawn.setdefault(event.request_id, []).append(event.token.token_id)
    assert drawn == expected
    assert bench.engine.stats().sampled_tokens == 320


def test_the_thread_sleeps_while_there_is_nothing_to_do(bench: Bench) -> None:
    bench.engine.submit(create_request(5))
    bench.engine.reserve(create_request(5))
    while bench.engine.stats().reserved == 0 or bench.engine.stats().running:
        time.sleep(0.001)
    time.sleep(0.02)
    steps = bench.engine.stats().steps
    cpu_s = time.process_time()
    time.sleep(0.2)
    assert bench.engine.stats().steps == steps
    assert time.process_time() - cpu_s < 0.1


def test_a_reservation_is_granted_while_a_step_runs(bench: Bench) -> None:
    """Grants do not wait for the end of the step that they were made before."""
    bench.runner.permits = threading.Semaphore(0)
    bench.engine.submit(create_request(5, "a"))
    assert bench.runner.entered.acquire(timeout=TIMEOUT_S)
    bench.engine.reserve(create_request(5, "b"))
    bench.runner.permits.release()
    assert bench.runner.entered.acquire(timeout=TIMEOUT_S)
    # The second step has no permit yet, so it has not ended.
    (grant,) = bench.wait_for("b", lambda event: True)
    assert isinstance(grant, ReservationGranted)
    bench.runner.permits.release(1000)


def test_reserve_fill_commit(bench: Bench) -> None:
    request = create_request(10, "a", max_tokens=5)
    expected = expected_tokens(request, 5)
    bench.engine.reserve(request)
    (grant,) = bench.wait_for("a", lambda event: True)
    assert isinstance(grant, ReservationGranted)
    bench.runner.fill(request, grant.block_ids, grant.num_cached_tokens)
    bench.engine.commit("a", expected[0])
    tokens = [e.token.token_id for e in bench.wait_for("a", is_last) if isinstance(e, TokenSampled)]
    assert tokens == expected[1:]
    bench.settle()
    with pytest.raises(UnknownRequestError, match="no request 'a'"):
        bench.engine.commit("a", 1)


def test_reserve_compute(bench: Bench) -> None:
    request = create_request(10, "a", max_tokens=5)
    expected = expected_tokens(request, 5)
    bench.engine.reserve(request)
    bench.wait_for("a", lambda event: True)
    bench.engine.compute("a")
    tokens = [e.token.token_id for e in bench.wait_for("a", is_last) if isinstance(e, TokenSampled)]
    assert tokens == expected
    bench.settle()
    with pytest.raises(UnknownRequestError, match="no request 'a'"):
        bench.engine.compute("a")


def test_cancel_is_idempotent_and_frees(bench: Bench) -> None:
    bench.runner.permits = threading.Semaphore(3)
    bench.engine.submit(create_request(10, "a", max_tokens=None))
    bench.wait_for("a", lambda event: isinstance(event, TokenSampled))
    bench.engine.cancel("a")
    bench.engine.cancel("a")
    bench.engine.cancel("unknown")
    bench.runner.permits.release(1000)
    assert isinstance(bench.wait_for("a", is_last)[-1], RequestCancelled)
    bench.settle()
    bench.engine.submit(create_request(5, "a"))
    bench.wait_for("a", is_last)


def test_cancel_at_random_moments(bench: Bench) -> None:
    rng = random.Random()
    requests = [create_request(rng.randrange(1, 60), max_tokens=None) for _ in range(30)]
    for request in requests[:10]:
        request.hold_blocks, request.max_new_tokens = True, 1
    for request in rng.sample(requests, len(requests)):
        accept = bench.engine.submit if request.hold_blocks or rng.random() < 0.5 else bench.engine.reserve
        accept(request)
        time.sleep(rng.random() * 0.002)
        bench.engine.cancel(rng.choice(requests).request_id)
        bench.engine.check_invariants()
    for request in requests:
        bench.engine.cancel(request.request_id)
    bench.settle()


def test_an_id_in_use_is_refused(bench: Bench) -> None:
    bench.engine.reserve(create_request(5, "a"))
    with pytest.raises(InvalidRequestError, match="request_id: 'a' is in use"):
        bench.engine.submit(create_request(5, "a"))


def test_the_queue_is_limited_at_once() -> None:
    bench = Bench(num_blocks=8, max_queue=5)
    bench.engine.start()
    try:
        bench.runner.permits = threading.Semaphore(0)
        bench.engine.submit(create_request(20, "running", max_tokens=1))
        assert bench.runner.entered.acquire(timeout=TIMEOUT_S)
        requests = create_requests(8, 20, max_tokens=1)
        for request in requests[:5]:
            bench.engine.submit(request)
        for request in requests[5:]:
            with pytest.raises(QueueFullError, match="max_queue: 5"):
                bench.engine.reserve(request)
        bench.runner.permits.release(1000)
        bench.settle()
        bench.engine.submit(requests[5])
        bench.wait_for(requests[5].request_id, is_last)
    finally:
        bench.engine.stop()


def test_a_failing_runner_fails_its_requests_loudly_and_the_engine_goes_on(bench: Bench) -> None:
    bench.runner.fail_steps = 1
    bench.engine.submit(create_request(5, "a"))
    (event,) = bench.wait_for("a", is_last)
    assert isinstance(event, RequestFailed)
    assert isinstance(event.error, StepFailedError)
    assert "the device is on fire" in str(event.error)
    assert bench.engine.healthy
    bench.engine.submit(create_request(5, "b"))
    assert isinstance(bench.wait_for("b", is_last)[-1], TokenSampled)
    bench.settle()


def test_a_bug_fails_everything_and_is_not_healthy(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    bench.engine.reserve(create_request(5, "reserved"))
    bench.wait_for("reserved", lambda event: True)
    monkeypatch.setattr(bench.engine._loop.scheduler, "schedule", lambda: 1 // 0)
    bench.engine.submit(create_request(5, "a"))
    for request_id in ("reserved", "a"):
        (event,) = bench.wait_for(request_id, is_last)
        assert isinstance(event, RequestFailed)
        assert isinstance(event.error, EngineStoppedError)
        assert "ZeroDivisionError" in str(event.error)
    bench.engine._thread.join(TIMEOUT_S)
    assert not bench.engine.healthy
    with pytest.raises(EngineStoppedError, match="died"):
        bench.engine.submit(create_request(5, "b"))
    bench.engine.cancel("a")
    bench.engine.check_invariants()
    assert bench.engine.stats().used_blocks == 0


def test_a_listener_that_raises_stops_the_engine(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    bench.raises = RuntimeError("closed")
    bench.engine.submit(create_request(5, "a"))
    bench.engine._thread.join(TIMEOUT_S)
    assert not bench.engine.healthy
    assert bench.engine.stats().used_blocks == 0


def test_stop_ends_what_is_left() -> None:
    # Room for more tokens than it can draw before the stop.
    bench = Bench(num_blocks=20_000, context_length=70_000)
    bench.engine.start()
    bench.engine.submit(create_request(10, "a", max_tokens=None))
    bench.engine.reserve(create_request(10, "b"))
    bench.wait_for("b", lambda event: True)
    bench.engine.stop()
    bench.engine.stop()
    assert not bench.engine.healthy
    assert bench.engine.stats().used_blocks == 0
    failures = [e for step in bench.steps for e in step.events if isinstance(e, RequestFailed)]
    assert {event.request_id for event in failures} == {"a", "b"}
    assert all(isinstance(event.error, EngineStoppedError) for event in failures)
    with pytest.raises(EngineStoppedError):
        bench.engine.submit(create_request(5))


def test_stop_without_start() -> None:
    bench = Bench()
    bench.engine.stop()
    assert not bench.engine.healthy


def test_check_invariants_asks_the_thread(bench: Bench) -> None:
    bench.engine.check_invariants()
    bench.engine._loop.scheduler._roster.running.num_reserved = 1
    with pytest.raises(AssertionError, match="reservations miscounted"):
        bench.engine.check_invariants()
    bench.engine._loop.scheduler._roster.running.num_reserved = 0


def with_sampling(**fields: object) -> Request:
    return create_request(5, sampling=SamplingParams(**fields))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("request_", "error", "message"),
    [
        (create_request([]), InvalidRequestError, "token_ids: must be 1 to 999 tokens"),
        (create_request(1000), InvalidRequestError, "token_ids: must be 1 to 999 tokens"),
        (create_request([101]), InvalidRequestError, "token_ids: must be from 0 to 100"),
        (create_request([-1]), InvalidRequestError, "token_ids: must be from 0 to 100"),
        (create_request(256), OutOfBlocksError, "256 tokens need 65 KV blocks, the pool has 64"),
        (with_sampling(logit_bias={101: 1.0}), InvalidRequestError, "logit_bias: token ids .* got 101"),
        (with_sampling(stop_token_ids=(-2,)), InvalidRequestError, "stop_token_ids: .* got -2"),
    ],
)
def test_bad_requests_are_refused_at_once(
    bench: Bench, request_: Request, error: type[EngineError], message: str
) -> None:
    for accept in (bench.engine.submit, bench.engine.reserve):
        with pytest.raises(error, match=message):
            accept(request_)
    assert not bench.engine._live


def test_bad_combinations_are_refused(bench: Bench) -> None:
    held = create_request(5, hold_blocks=True)
    with pytest.raises(InvalidRequestError, match="hold_blocks"):
        bench.engine.reserve(held)
    held.max_new_tokens = None
    with pytest.raises(InvalidRequestError, match="max_new_tokens: must be 1 with hold_blocks"):
        bench.engine.submit(held)
    resumed = create_request(5, max_tokens=2)
    resumed.num_prompt_tokens = 3
    with pytest.raises(InvalidRequestError, match="max_tokens: 2, and 2 are there already"):
        bench.engine.submit(resumed)
    resumed.num_prompt_tokens = 6
    with pytest.raises(InvalidRequestError, match="num_prompt_tokens: must be from 1 to 5, got 6"):
        bench.engine.submit(resumed)
    zero = create_request(5)
    zero.max_new_tokens = 0
    with pytest.raises(InvalidRequestError, match="max_new_tokens: must be at least 1"):
        bench.engine.submit(zero)


def test_a_whole_pool_prompt_fits_if_it_is_only_prefilled(bench: Bench) -> None:
    request = create_request(256, "a", hold_blocks=True)
    bench.engine.submit(request)
    bench.wait_for("a", lambda event: isinstance(event, TokenSampled))
    assert bench.engine.stats().used_blocks == 64
    bench.engine.cancel("a")
    bench.settle()


def test_what_can_be_prepared_is_prepared_while_nothing_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit by bit: a request that comes meanwhile waits for one of them at most."""
    bench, left, during = Bench(), [5], list[int]()
    asked = threading.Semaphore(0)

    def prepare() -> bool:
        during.append(len(bench.engine._live))
        asked.release()
        if left[0] == 3:
            bench.engine.submit(create_request(9, "a", max_tokens=2))
        left[0] -= 1
        if left[0] == 1:
            raise RuntimeError("no memory")
        return left[0] > 0

    monkeypatch.setattr(engine_module, "QUIET_S", 0.01)
    monkeypatch.setattr(bench.runner, "prepare", prepare)
    bench.engine.start()
    try:
        bench.wait_for("a", is_last)
        for _ in range(4):
            assert asked.acquire(timeout=TIMEOUT_S)
        bench.settle()
    finally:
        bench.engine.stop()
    assert during[:4] == [0, 0, 0, 0], "never beside a request, and a failure costs nothing but itself"
