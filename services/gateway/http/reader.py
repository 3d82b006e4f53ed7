"""Turns the events of one session into an answer's parts."""

from __future__ import annotations

from baton.v1.inference_pb2 import Delta, Finished, Usage
from baton.v1.sampling_pb2 import FinishReason
from services.gateway.http.formats import Choice
from services.gateway.request import Request
from services.gateway.session.session import Event
from services.gateway.text.message import MessageParser, MessagePart

_FINISH = {
    FinishReason.FINISH_REASON_STOP: "stop",
    FinishReason.FINISH_REASON_LENGTH: "length",
}


class Reader:
    """One answer.

    Args:
        parser: finds reasoning and calls of tools.
        echo: text that the answer begins with.
        max_calls: further calls are dropped; None: no limit.
        shows_logprobs: false: those that come serve `logprob_sum` alone.
    Attributes:
        usage: token counts so far.
        reasoning_tokens: those before the text of the answer began, if there was reasoning.
        logprob_sum: of all tokens, where log-probabilities were asked for.
    """

    def __init__(
        self,
        request: Request,
        parser: MessageParser,
        *,
        echo: str = "",
        max_calls: int | None = None,
        shows_logprobs: bool = True,
    ) -> None:
        self._parser = parser
        self._echo = echo
        self._max_calls = max_calls
        self._num_calls = 0
        self._shows_logprobs = shows_logprobs
        self._has_reasoning = False
        self._has_text = False
        self.reasoning_tokens = 0
        self.usage = Usage(prompt_tokens=len(request.token_ids))
        self.logprob_sum = 0.0

    def take(self, choice: Choice, event: Event) -> None:
        """Add an event to a choice."""
        if isinstance(event, Delta):
            self.usage.completion_tokens += len(event.token_ids)
            self.logprob_sum += sum(entry.sampled.logprob for entry in event.logprobs)
            if self._shows_logprobs:
                choice.logprobs.extend(event.logprobs)
            self._add(choice, self._parser.push(self._echo + event.text))
            self._echo = ""
        elif isinstance(event, Finished):
            self.usage = event.usage
            self._add(choice, self._parser.flush())
            choice.finish = _FINISH[event.reason]
            if self._num_calls and choice.finish == "stop":
                choice.finish = "tool_calls"

    def _add(self, choice: Choice, part: MessagePart) -> None:
        self._has_reasoning = self._has_reasoning or bool(part.reasoning)
        self._has_text = self._has_text or bool(part.text)
        if self._has_reasoning and not self._has_text:
            self.reasoning_tokens = self.usage.completion_tokens
        calls = part.tool_calls
        if self._max_calls is not None:
            calls = calls[: self._max_calls - self._num_calls]
        if calls and not choice.part.tool_calls:
            choice.first_call = self._num_calls
        self._num_calls += len(calls)
        choice.part.tool_calls.extend(calls)
        choice.part.reasoning += part.reasoning
        choice.part.text += part.text
