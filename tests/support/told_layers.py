"""Lets the CPU's runner tell of layers, as a GPU's does by itself."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass

import pytest

import engine.step
from engine.runner.model_runner import DoneStep, ModelRunner
from engine.step import LayersWritten, SchedulerOutput

MIN_TOKENS = 10


@dataclass
class Told:
    """How many moments were waited for."""

    num_waits: int = 0


def tell_of_layers(monkeypatch: pytest.MonkeyPatch) -> Told:
    """From now on steps that end a prompt of `MIN_TOKENS` say so, at any time before or after their end."""
    monkeypatch.setattr(engine.step, "MIN_TOKENS_TOLD_EARLY", MIN_TOKENS)
    launch, rng, told = ModelRunner.launch, random.Random(), Told()

    def wait() -> None:
        told.num_waits += 1
        time.sleep(rng.choice([0, 0, 1e-4, 2e-3]))

    def launch_and_tell(runner: ModelRunner, output: SchedulerOutput) -> DoneStep:
        done, num_layers = launch(runner, output), runner._pool.group.shape[0]
        moments = [LayersWritten(count, wait) for count in range(1, num_layers + 1)]
        return DoneStep(done.result, moments if output.tells_layers else ())

    monkeypatch.setattr(ModelRunner, "launch", launch_and_tell)
    return told
