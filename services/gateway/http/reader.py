"""Turns the events of one session into an answer's parts."""

from __future__ import annotations

import math
from dataclasses import dataclass

from baton.v1.inference_pb2 import Delta, Finished, Usage
from baton.v1.sampling_pb2 import FinishReason, TokenLogprob, TokenLogprobs
from services.gateway.http.formats import Choice
from services.gateway.request import Request
from services.gateway.session.session import Event
from services.gateway.text.message import MessageParser, MessagePart

_FINISH = {
    FinishReason.FINISH_REASON_STOP: "stop",
    FinishReason.FINISH_REASON_LENGTH: "length",
}


@dataclass(frozen=True, slots=True)
class Echo:
    """The prompt, where it is shown before the answer."""

    text: str
    first_token: int


class Reader:
    """One answer.

    Args:
        parser: finds reasoning and calls of tools.
        echo: what of the prompt the answer begins with.
        is_scoring: nothing comes after the echo.
        max_calls: further calls are dropped; None: no limit.
        shows_logprobs: false: those that come serve `logprob_sum` alone.
    Attributes:
        is_plain: all that comes after an answer's first token is text, shown as it comes.
        num_tokens: of the answer, so far.
        reasoning_tokens: those before the text of the answer began, if there was reasoning.
        logprob_sum: of all tokens, where log-probabilities were asked for.
    """

    def __init__(
        self,
        request: Request,
        parser: MessageParser,
        *,
        echo: Echo | None = None,
        is_scoring: bool = False,
        max_calls: int | None = None,
        shows_logprobs: bool = True,
    ) -> None:
        self._parser = parser
        self.is_plain = parser.is_plain and not is_scoring
        self._echo = echo
        self._is_scoring = is_scoring
        self._max_calls = max_calls
        self._num_calls = 0
        self._shows_logprobs = shows_logprobs
        self._has_reasoning = False
        self._has_text = False
        self.reasoning_tokens = 0
        self.num_tokens = 0
        self._num_prompt_tokens = len(request.token_ids)
        self._usage: Usage | None = None
        self.logprob_sum = 0.0

    @property
    def usage(self) -> Usage:
        """Token counts, so far; complete at the end."""
        so_far = Usage(prompt_tokens=self._num_prompt_tokens, completion_tokens=self.num_tokens)
        return self._usage or so_far

    def take(self, choice: Choice, event: Event) -> None:
        """Add an event to a choice."""
        if isinstance(event, Delta):
            self._take_echo(choice, event)
            if not self._is_scoring:
                self._take_delta(choice, event)
        elif isinstance(event, Finished):
            self._usage = event.usage
            self._add(choice, self._parser.flush())
            choice.finish = _FINISH[event.reason]
            if self._is_scoring:
                self._usage.completion_tokens, choice.finish = 0, "length"
            if self._num_calls and choice.finish == "stop":
                choice.finish = "tool_calls"

    def _take_echo(self, choice: Choice, delta: Delta) -> None:
        """Add what the prompt is shown of, before the first of the answer."""
        choice.prompt_logprobs.extend(delta.prompt_logprobs)
        if self._echo is not None:
            self._add(choice, MessagePart(text=self._echo.text))
            if self._shows_logprobs and delta.prompt_logprobs:
                first = TokenLogprob(token_id=self._echo.first_token, logprob=math.nan)
                choice.logprobs += [TokenLogprobs(sampled=first), *delta.prompt_logprobs]
        self._echo = None

    def _take_delta(self, choice: Choice, delta: Delta) -> None:
        self.num_tokens += len(delta.token_ids)
        self.logprob_sum += sum(entry.sampled.logprob for entry in delta.logprobs)
        if self._shows_logprobs:
            choice.logprobs.extend(delta.logprobs)
        self._add(choice, self._parser.push(delta.text))

    def _add(self, choice: Choice, part: MessagePart) -> None:
        self._has_reasoning = self._has_reasoning or bool(part.reasoning)
        self._has_text = self._has_text or bool(part.text)
        if self._has_reasoning and not self._has_text:
            self.reasoning_tokens = self.num_tokens
        calls = part.tool_calls
        if self._max_calls is not None:
            calls = calls[: self._max_calls - self._num_calls]
        if calls and not choice.part.tool_calls:
            choice.first_call = self._num_calls
        self._num_calls += len(calls)
        choice.part.tool_calls.extend(calls)
        choice.part.reasoning += part.reasoning
        choice.part.text += part.text
