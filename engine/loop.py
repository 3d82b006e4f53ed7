"""The walk of a step: schedule, launch, commit. Everything here is on the engine thread.

    ahead = False      schedule 1, launch 1, commit 1, schedule 2, launch 2, commit 2 ...
    ahead = True       schedule 1, launch 1, schedule 2, launch 2, commit 1, schedule 3 ...

One step ahead, the host prepares a step while the device runs the one before, so that the
device never waits. With `late` it does so at the end of the one before (launch_timer.py).
"""

from __future__ import annotations

import contextlib
import logging
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from engine.errors import EngineError, StepFailedError
from engine.events import StepEvents
from engine.launch_timer import LaunchTimer
from engine.scheduler.scheduler import Scheduler
from engine.step import PendingStep, Runner, SchedulerOutput, StepResult

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Launched:
    """A step on the device.

    Attributes:
        num_tokens: of the step.
        launched_s: when, by the launch timer.
    """

    output: SchedulerOutput
    pending: PendingStep
    num_tokens: int
    launched_s: float


class EngineLoop:
    """Runs steps of one scheduler on one runner and publishes what they bring about."""

    def __init__(
        self,
        scheduler: Scheduler,
        runner: Runner,
        publish: Callable[[StepEvents, Sequence[str], bool], None],
        ahead: bool = False,
        late: bool = False,
    ) -> None:
        """Connect the parts.

        Args:
            publish: gets the events, the ids of requests that hold nothing any more, and whether a step has
                ended with that.
            ahead: launch a step before the one in front of it is committed.
            late: but no sooner than needed.
        """
        self.scheduler = scheduler
        self._runner = runner
        self._publish = publish
        self._max_behind = 1 if ahead else 0
        self._launched: deque[_Launched] = deque()
        self._timer = LaunchTimer()
        self._waits = ahead and late

    def step(self) -> bool:
        """Launch the next step, commit the one whose turn it is.

        A runner that raises costs the requests of that step; the engine goes on.

        Returns:
            False: there was nothing to run, and will not be before another command.
        """
        if not self._launched:
            self._timer.begun()
        output = self.scheduler.schedule()
        # Grants and cached blocks are of use while the step runs, so they do not wait for its end.
        self.publish(output.step, ends=output.is_empty)
        if not output.is_empty:
            self._launch(output)
        elif self._launched:
            self._finish_oldest()
        else:
            return False
        while len(self._launched) > self._max_behind:
            self._finish_oldest()
        if self._waits and self._launched:
            self._wait_for_more(self._launched[-1])
        return True

    def _wait_for_more(self, newest: _Launched) -> None:
        """Let more arrive before the step behind this one is made."""
        # What went wrong on the device is said by the step's own wait.
        with contextlib.suppress(Exception):
            self._timer.wait(newest.num_tokens, newest.launched_s, newest.pending.is_over)

    def prepare(self) -> bool:
        """Use the time in which nothing runs; False: there is nothing to prepare."""
        try:
            return self._runner.prepare()
        except Exception as error:
            _log.warning("a preparation failed", exc_info=error)
            return False

    def _launch(self, output: SchedulerOutput) -> None:
        try:
            pending = self._runner.launch(output)
        except Exception as error:
            # The steps before it are not to blame.
            while self._launched:
                self._finish_oldest()
            self._abandon(output, error)
            return
        self._launched.append(_Launched(output, pending, output.num_tokens, self._timer.launched()))
        if pending.layers:
            self.scheduler.follow(output, pending.layers)
            self.publish(output.step, ends=False)

    def _finish_oldest(self) -> None:
        """Wait for the oldest step on the device and take in what it brought."""
        launched = self._launched.popleft()
        output = launched.output
        try:
            was_over = launched.pending.is_over()
            result = launched.pending.wait()
            _check_complete(output, result)
        except Exception as error:
            self._timer.dropped()
            self._abandon(output, error)
            return
        if self._waits:
            self._timer.ended(launched.num_tokens, launched.launched_s, was_over=was_over)
        self.scheduler.commit(output, result)
        self.publish(output.step)

    def _abandon(self, output: SchedulerOutput, error: Exception) -> None:
        _log.error("step %d failed", output.step, exc_info=error)
        self.scheduler.abandon(output, _as_step_failure(output.step, error))
        self.publish(output.step)

    def publish(self, step: int, *, ends: bool = True) -> None:
        """Hand over what happened since the last time."""
        events = self.scheduler.take_events()
        self._publish(StepEvents(step, tuple(events)), self.scheduler.take_ended(), ends)

    def fail_all(self, error: EngineError) -> None:
        """End every request with an error and free everything, once the device has come to rest."""
        while self._launched:
            launched = self._launched.popleft()
            try:
                launched.pending.wait()
            except Exception as failure:
                _log.error("step %d failed", launched.output.step, exc_info=failure)
            self.scheduler.abandon(launched.output, error)
        for request_id in self.scheduler.request_ids:
            self.scheduler.fail(request_id, error)
        self.publish(self.scheduler.stats().steps)


def _check_complete(output: SchedulerOutput, result: StepResult) -> None:
    sampled = result.sampled
    missing = [
        row.request.request_id for row in output.rows if row.sample and row.request.request_id not in sampled
    ]
    if missing:
        raise StepFailedError(f"step {output.step}: the runner sampled nothing for {missing}")


def _as_step_failure(step: int, error: Exception) -> EngineError:
    if isinstance(error, StepFailedError):
        return error
    failure = StepFailedError(f"step {step}: {type(error).__name__}: {error}")
    failure.__cause__ = error
    return failure
