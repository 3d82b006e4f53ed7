"""The step behind the one that runs is launched late, and the device does not wait for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pytest

from engine import launch_timer
from engine.events import StepEvents
from engine.loop import EngineLoop
from engine.step import LayersWritten, SampledToken, SchedulerOutput, StepResult
from tests.support.engine_builders import create_request, create_scheduler


class Clock:
    """Time that passes when somebody sleeps or works."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def monotonic(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds


@dataclass
class Step:
    clock: Clock
    output: SchedulerOutput
    over_s: float
    layers: Sequence[LayersWritten] = ()

    def is_over(self) -> bool:
        return self.clock.now_s >= self.over_s

    def wait(self) -> StepResult:
        self.clock.now_s = max(self.clock.now_s, self.over_s)
        return StepResult({row.request.request_id: SampledToken(7) for row in self.output.rows if row.sample})


class Device:
    """Runs each step for `run_s`; notes when the host made it, and how long the device had nothing to do."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.host_s = 0.0008
        self.run_s = 0.006
        self.free_s = 0.0
        self.idle_s: list[float] = []
        self.early_s: list[float] = []

    def prepare(self) -> bool:
        return False

    def launch(self, output: SchedulerOutput) -> Step:
        # What remains of the step in front when the host begins: for so long an arrival has missed this one.
        self.early_s.append(max(0.0, self.free_s - self.clock.now_s))
        self.clock.now_s += self.host_s
        self.idle_s.append(max(0.0, self.clock.now_s - self.free_s))
        self.free_s = max(self.clock.now_s, self.free_s) + self.run_s
        return Step(self.clock, output, self.free_s)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(launch_timer, "time", clock)
    return clock


@pytest.fixture
def device(clock: Clock) -> Device:
    return Device(clock)


def drop(events: StepEvents, ended: Sequence[str], ends: bool) -> None:
    """Nobody listens."""


def loop_of(device: Device, rows: int, *, late: bool = True) -> EngineLoop:
    """A loop with requests that decode for long."""
    scheduler = create_scheduler(num_blocks=512, context_length=512)
    for index in range(rows):
        scheduler.add(create_request(1, f"r{index}", max_tokens=400))
    return EngineLoop(scheduler, device, drop, ahead=True, late=late)


def test_a_step_is_made_just_before_the_one_in_front_ends(device: Device) -> None:
    loop = loop_of(device, 5)
    for _ in range(40):
        assert loop.step()
    assert max(device.early_s[-20:]) < device.host_s + 0.001
    assert max(device.idle_s[-20:]) == 0.0


def test_without_late_it_is_made_when_the_one_before_that_ends(device: Device) -> None:
    loop = loop_of(device, 5, late=False)
    for _ in range(40):
        assert loop.step()
    assert min(device.early_s[-20:]) > device.run_s - 0.0001
    assert max(device.idle_s[-20:]) == 0.0


@pytest.mark.parametrize("host_s", [0.0004, 0.0008, 0.002, 0.004])
def test_steps_that_get_shorter_cost_a_launch_and_a_millisecond_once(device: Device, host_s: float) -> None:
    device.host_s, device.run_s = host_s, 0.012
    loop = loop_of(device, 5)
    for _ in range(20):
        loop.step()
    device.run_s = 0.007
    for _ in range(20):
        loop.step()
    late = device.idle_s[-20:]
    assert sum(late) <= 0.0015 + host_s
    assert max(late[4:]) < 1e-9


@pytest.mark.parametrize("delay_s", [0.0002, 0.0005, 0.001, 0.003])
def test_a_delay_behind_the_wait_is_allowed_for(device: Device, delay_s: float) -> None:
    loop = loop_of(device, 5)
    for _ in range(60):
        loop.step()
        device.clock.now_s += delay_s
    assert max(device.idle_s[-40:]) < 1e-9
    assert max(device.early_s[-40:]) < device.host_s + delay_s + 0.0015


def test_now_and_then_a_slow_launch_does_not_make_all_later_ones_late(device: Device) -> None:
    loop = loop_of(device, 5)
    for number in range(80):
        device.host_s = 0.012 if number % 8 == 3 else 0.0008
        loop.step()
    assert sum(idle > 1e-9 for idle in device.idle_s[-40:]) <= 5


def test_steps_that_get_longer_cost_nothing(device: Device) -> None:
    loop = loop_of(device, 5)
    for _ in range(40):
        device.run_s *= 1.02
        loop.step()
    assert max(device.idle_s[-20:]) == 0.0


def test_a_host_slower_than_its_device_waits_for_nothing(device: Device) -> None:
    device.run_s = device.host_s / 2
    loop = loop_of(device, 5)
    for _ in range(10):
        loop.step()
    begun_s = device.clock.now_s
    for _ in range(10):
        loop.step()
    assert device.clock.now_s - begun_s == pytest.approx(10 * device.host_s)


def test_a_step_of_unknown_size_is_taken_for_a_smaller_one(device: Device) -> None:
    loop = loop_of(device, 5)
    for _ in range(20):
        loop.step()
    loop.scheduler.add(create_request(50, "prompt", max_tokens=4))
    device.run_s = 0.010
    loop.step()  # launches the prompt
    device.early_s.clear()
    loop.step()
    assert 0.004 < device.early_s[0] < 0.004 + device.host_s + 0.001


def test_nothing_is_foretold_by_larger_steps(device: Device) -> None:
    loop = loop_of(device, 33)
    for _ in range(20):
        loop.step()
    for index in range(32):
        loop.scheduler.cancel(f"r{index}")
    loop.step()
    device.early_s.clear()
    loop.step()
    assert device.early_s[0] > device.run_s - 0.0001


def test_a_device_that_fails_costs_the_requests_of_its_steps(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(step: Step) -> bool:
        raise RuntimeError("an illegal memory access was encountered")

    loop = loop_of(device, 5)
    for _ in range(5):
        loop.step()
    with monkeypatch.context() as patched:
        patched.setattr(Step, "is_over", fail)
        for _ in range(3):
            loop.step()
    assert not loop.scheduler.request_ids
    loop.scheduler.add(create_request(1, "later", max_tokens=400))
    for _ in range(20):
        assert loop.step()
    assert max(device.idle_s[-10:]) == 0.0
