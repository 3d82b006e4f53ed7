"""The walk of a step: schedule, run, commit. Everything here is on the engine thread."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from engine.errors import EngineError, StepFailedError
from engine.events import Event, StepEvents
from engine.scheduler.scheduler import Scheduler
from engine.step import Runner, SchedulerOutput, StepResult

_log = logging.getLogger(__name__)


class EngineLoop:
    """Runs steps of one scheduler on one runner and publishes what they bring about."""

    def __init__(
        self,
        scheduler: Scheduler,
        runner: Runner,
        publish: Callable[[StepEvents, Sequence[str]], None],
    ) -> None:
        """Connect the parts.

        Args:
            publish: gets the events, and the ids of requests that hold nothing any more.
        """
        self.scheduler = scheduler
        self._runner = runner
        self._publish = publish

    def step(self) -> bool:
        """Run one step; False: there was nothing to run, and will not be before another command.

        A runner that raises costs the requests of this step; the engine goes on.
        """
        output = self.scheduler.schedule()
        # Grants and cached blocks are of use while the step runs, so they do not wait for its end.
        self.publish(output.step)
        if not output.rows:
            return False
        try:
            result = self._run(output)
        except Exception as error:
            _log.exception("step %d failed", output.step)
            self.scheduler.abandon(output, _as_step_failure(output.step, error))
        else:
            self.scheduler.commit(output, result)
        self.publish(output.step)
        return True

    def _run(self, output: SchedulerOutput) -> StepResult:
        result = self._runner.launch(output).wait()
        missing = [
            row.request.request_id
            for row in output.rows
            if row.sample and row.request.request_id not in result.sampled
        ]
        if missing:
            raise StepFailedError(f"step {output.step}: the runner sampled nothing for {missing}")
        return result

    def publish(self, step: int) -> None:
        """Hand over what happened since the last time."""
        events: list[Event] = self.scheduler.take_events()
        self._publish(StepEvents(step, tuple(events)), self.scheduler.take_ended())

    def fail_all(self, error: EngineError) -> None:
        """End every request with an error and free everything."""
        for request_id in self.scheduler.request_ids:
            self.scheduler.fail(request_id, error)
        self.publish(self.scheduler.stats().steps)


def _as_step_failure(step: int, error: Exception) -> EngineError:
    if isinstance(error, StepFailedError):
        return error
    failure = StepFailedError(f"step {step}: {type(error).__name__}: {error}")
    failure.__cause__ = error
    return failure
