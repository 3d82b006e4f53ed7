"""Role `both`: one engine in this process."""

from __future__ import annotations

import threading
import time

from bench.engine.measurement import Measurement, Watch
from bench.engine.workloads import Workload
from engine.build import build_engine
from engine.config import EngineConfig
from engine.events import RequestFailed, StepEvents, TokenSampled
from engine.request import Request
from engine.sampling_params import SamplingParams

TIMEOUT_S = 3600.0


class CoLocated:
    """Runs workloads on an engine.

    Attributes:
        start_s: from nothing until the engine takes requests.
        built: the engine and its facts.
    """

    name = "both"

    def __init__(self, config: EngineConfig) -> None:
        start = time.perf_counter()
        self.built = build_engine(config, self._on_events)
        self.built.engine.start()
        self.start_s = time.perf_counter() - start
        self._watch = Watch({})
        self._done = threading.Event()
        self._failure: Exception | None = None
        self._runs = 0

    def run(self, workload: Workload, prompts: list[list[int]]) -> Measurement:
        """Answer all prompts of a workload.

        Raises:
            EngineError: a request failed.
        """
        self._runs += 1
        requests = []
        for index, (prompt, (_, num_out)) in enumerate(zip(prompts, workload.sizes, strict=True)):
            sampling = SamplingParams(max_tokens=num_out, temperature=0.0, ignore_eos=True)
            requests.append(Request(f"{self._runs}-{index}", prompt, len(prompt), sampling))
        self._done.clear()
        self._watch = Watch({request.request_id: request.sampling.max_tokens or 0 for request in requests})
        for request in requests:
            self.built.engine.submit(request)
        assert self._done.wait(TIMEOUT_S), f"{self._watch.left} requests are not done after {TIMEOUT_S:g} s"
        if self._failure is not None:
            raise self._failure
        result = self._watch.result(workload.watched)
        self.built.engine.check_invariants()
        assert self.built.engine.stats().used_blocks == 0, "blocks were lost"
        return result

    def counters(self) -> dict[str, int]:
        """Return what the engine has counted since its start."""
        stats = self.built.engine.stats()
        return {"steps": stats.steps, "preemptions": stats.preemptions}

    def close(self) -> None:
        """Stop the engine."""
        self.built.engine.stop()

    def _on_events(self, step: StepEvents) -> None:
        now = time.perf_counter()
        for event in step.events:
            if isinstance(event, TokenSampled):
                if self._watch.token(event.request_id, now):
                    self._done.set()
            elif isinstance(event, RequestFailed):
                self._failure = event.error
                self._done.set()
