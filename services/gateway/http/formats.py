"""OpenAI's shapes of answers: whole and in chunks, for chats and plain completions."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from baton.v1.inference_pb2 import Usage
from baton.v1.sampling_pb2 import FinishReason, TokenLogprob, TokenLogprobs
from services.common.ids import new_id
from services.gateway.text.tokenizer import Tokenizer

Json = str | int | float | bool | None | Sequence["Json"] | dict[str, "Json"]

_LEAST_LOGPROB = -9999.0  # JSON has no infinity
_FINISH = {
    FinishReason.FINISH_REASON_STOP: "stop",
    FinishReason.FINISH_REASON_LENGTH: "length",
}


@dataclass(slots=True)
class Choice:
    """One answer, whole or a part of it."""

    index: int
    text: str = ""
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    finish_reason: FinishReason = FinishReason.FINISH_REASON_UNSPECIFIED


class Format(Protocol):
    """How an API shows answers. The ids that begin with `prefix` are the API's."""

    prefix: str
    whole_object: str
    chunk_object: str

    def whole(self, choice: Choice) -> dict[str, Json]:
        """Return a complete choice."""

    def opening(self, choice: Choice) -> dict[str, Json] | None:
        """Return what a choice's stream begins with, or None."""

    def chunk(self, choice: Choice) -> dict[str, Json]:
        """Return a part of a choice."""


class Head:
    """What all messages of one answer share."""

    def __init__(self, format: Format, model: str) -> None:
        self._format = format
        self._common: dict[str, Json] = {
            "id": f"{format.prefix}-{new_id()}",
            "created": int(time.time()),
            "model": model,
        }
        self._chunk_head = json.dumps({**self._common, "object": format.chunk_object})[:-1]

    def whole(self, choices: Sequence[Choice], usage: dict[str, Json]) -> bytes:
        """Return a complete answer."""
        answer: dict[str, Json] = {
            **self._common,
            "object": self._format.whole_object,
            "choices": [self._format.whole(choice) for choice in choices],
            "usage": usage,
        }
        return json.dumps(answer, ensure_ascii=False).encode()

    def event(self, choices: Sequence[dict[str, Json]], tail: str = "") -> bytes:
        """Return one server-sent event; `tail` is further JSON members, each after a comma."""
        body = json.dumps(choices, ensure_ascii=False)
        return f'data: {self._chunk_head}, "choices": {body}{tail}}}\n\n'.encode()


class ChatFormat:
    """Chat completions."""

    prefix = "chatcmpl"
    whole_object = "chat.completion"
    chunk_object = "chat.completion.chunk"

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def whole(self, choice: Choice) -> dict[str, Json]:
        """Return a complete choice."""
        message: dict[str, Json] = {"role": "assistant", "content": choice.text, "refusal": None}
        return {"index": choice.index, "message": message, **self._rest(choice)}

    def opening(self, choice: Choice) -> dict[str, Json] | None:
        """Return the chunk that names the role."""
        delta: dict[str, Json] = {"role": "assistant", "content": ""}
        return {"index": choice.index, "delta": delta, "logprobs": None, "finish_reason": None}

    def chunk(self, choice: Choice) -> dict[str, Json]:
        """Return a part of a choice."""
        is_last = bool(choice.finish_reason) and not choice.text
        delta: dict[str, Json] = {} if is_last else {"content": choice.text}
        return {"index": choice.index, "delta": delta, **self._rest(choice)}

    def _rest(self, choice: Choice) -> dict[str, Json]:
        logprobs: Json = None
        if choice.logprobs:
            content = [
                {**self._token(entry.sampled), "top_logprobs": [self._token(top) for top in entry.top]}
                for entry in choice.logprobs
            ]
            logprobs = {"content": content, "refusal": None}
        return {"logprobs": logprobs, "finish_reason": _FINISH.get(choice.finish_reason)}

    def _token(self, entry: TokenLogprob) -> dict[str, Json]:
        spelled = self._tokenizer.token_bytes(entry.token_id)
        return {
            "token": spelled.decode(errors="replace"),
            "logprob": max(entry.logprob, _LEAST_LOGPROB),
            "bytes": list(spelled),
        }


class TextFormat:
    """Plain completions."""

    prefix = "cmpl"
    whole_object = chunk_object = "text_completion"

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._offsets: dict[int, int] = {}

    def whole(self, choice: Choice) -> dict[str, Json]:
        """Return a complete choice."""
        return self.chunk(choice)

    def opening(self, choice: Choice) -> dict[str, Json] | None:
        """Return None: a plain completion has no opening."""
        return None

    def chunk(self, choice: Choice) -> dict[str, Json]:
        """Return a part of a choice."""
        return {
            "index": choice.index,
            "text": choice.text,
            "logprobs": self._logprobs(choice) if choice.logprobs else None,
            "finish_reason": _FINISH.get(choice.finish_reason),
        }

    def _logprobs(self, choice: Choice) -> dict[str, Json]:
        tokens = [self._spell(entry.sampled) for entry in choice.logprobs]
        offset = self._offsets.get(choice.index, 0)
        offsets: list[int] = []
        for token in tokens:
            offsets.append(offset)
            offset += len(token)
        self._offsets[choice.index] = offset
        return {
            "tokens": tokens,
            "token_logprobs": [max(entry.sampled.logprob, _LEAST_LOGPROB) for entry in choice.logprobs],
            "top_logprobs": [
                {self._spell(top): max(top.logprob, _LEAST_LOGPROB) for top in (*entry.top, entry.sampled)}
                for entry in choice.logprobs
            ],
            "text_offset": offsets,
        }

    def _spell(self, entry: TokenLogprob) -> str:
        return self._tokenizer.token_bytes(entry.token_id).decode(errors="replace")


def show_usage(usages: Sequence[Usage], num_choices: int) -> dict[str, Json]:
    """Return OpenAI's usage.

    Args:
        usages: in order of choices; a prompt is counted once for its `num_choices` answers.
    """
    prompts = usages[::num_choices]
    prompt_tokens = sum(usage.prompt_tokens for usage in prompts)
    completion_tokens = sum(usage.completion_tokens for usage in usages)
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "prompt_tokens_details": {"cached_tokens": sum(usage.cached_tokens for usage in prompts)},
    }
