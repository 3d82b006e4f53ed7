"""Runs requests on a built engine and collects what they answer."""

from __future__ import annotations

import queue
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from engine.build import BuiltEngine, build_engine
from engine.config import EngineConfig
from engine.events import RequestFailed, StepEvents, TokenSampled
from engine.request import Request
from engine.sampling_params import SamplingParams
from engine.step import Logprobs


@dataclass
class Answer:
    """What one request got."""

    tokens: list[int] = field(default_factory=list)
    logprobs: list[Logprobs | None] = field(default_factory=list)
    num_cached_tokens: int = 0
    prompt_logprobs: list[Logprobs] = field(default_factory=list)


class AnsweringEngine:
    """A running engine; a context manager."""

    def __init__(self, config: EngineConfig) -> None:
        self._events: queue.Queue[StepEvents] = queue.Queue()
        self.built: BuiltEngine = build_engine(config, self._events.put)
        self._count = 0

    def __enter__(self) -> AnsweringEngine:
        self.built.engine.start()
        return self

    def __exit__(self, *_: object) -> None:
        try:
            if self.built.engine.healthy:
                self.built.engine.check_invariants()
        finally:
            self.built.engine.stop()

    def answer(
        self,
        prompts: Sequence[Sequence[int]],
        samplings: Sequence[SamplingParams] | SamplingParams,
        begun: Sequence[Sequence[int]] | None = None,
    ) -> list[Answer]:
        """Submit all at once; answers in the same order. A request that fails raises its error.

        Args:
            begun: what each has answered already, elsewhere.
        """
        if isinstance(samplings, SamplingParams):
            samplings = [replace(samplings) for _ in prompts]
        answers: dict[str, Answer] = {}
        for prompt, tokens, sampling in zip(prompts, begun or [[] for _ in prompts], samplings, strict=True):
            self._count += 1
            answers[str(self._count)] = Answer()
            request = Request(str(self._count), [*prompt, *tokens], len(prompt), sampling)
            # The engine fills the request's own list.
            answers[request.request_id].prompt_logprobs = request.prompt_logprobs
            self.built.engine.submit(request)
        running = set(answers)
        while running:
            for event in self._events.get(timeout=120).events:
                if isinstance(event, RequestFailed):
                    raise event.error
                if isinstance(event, TokenSampled):
                    answer = answers[event.request_id]
                    answer.tokens.append(event.token.token_id)
                    answer.logprobs.append(event.token.logprobs)
                    answer.num_cached_tokens = event.num_cached_tokens
                    if event.finish_reason is not None:
                        running.discard(event.request_id)
        return list(answers.values())
