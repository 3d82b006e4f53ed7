"""OpenAI's shapes of answers: whole and in chunks, for chats and plain completions."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from baton.v1.inference_pb2 import Usage
from baton.v1.sampling_pb2 import TokenLogprob, TokenLogprobs
from services.common.ids import new_id
from services.gateway.http.logprobs import clamp, show_token
from services.gateway.http.values import Json, dump_line
from services.gateway.text.detokenizer import Detokenizer
from services.gateway.text.message import MessagePart
from services.gateway.text.tokenizer import Tokenizer


@dataclass(slots=True)
class Choice:
    """One answer, whole or a part of it.

    Attributes:
        first_call: number of the message's calls before those in `part`.
        logprobs: of tokens that are shown; NaN: of an echoed prompt's first, which nothing foretells.
        prompt_logprobs: of the prompt's tokens from the second on, if they were asked for.
        finish: OpenAI's finish reason; None: it goes on.
    """

    index: int
    part: MessagePart = field(default_factory=MessagePart)
    first_call: int = 0
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprobs] = field(default_factory=list)
    finish: str | None = None

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to show."""
        part = self.part
        return not (part.text or part.reasoning or part.tool_calls or self.logprobs or self.finish)


class Format(Protocol):
    """How an API shows answers. The ids that begin with `prefix` are the API's."""

    prefix: str
    whole_object: str
    chunk_object: str
    # JSON of a choice with text alone, before and after the text.
    text_frame: tuple[str, str]

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

    def text_frame(self, index: int, tail: str = "") -> tuple[str, str]:
        """Return what `event` has before and after the text of a choice that has nothing else."""
        before, after = self._format.text_frame
        head = f'data: {self._chunk_head}, "choices": [{{"index": {index}, {before}'
        return head, f"{after}}}]{tail}}}\n\n"

    def event(self, choices: Sequence[dict[str, Json]], tail: str = "") -> bytes:
        """Return one server-sent event; `tail` is further JSON members, each after a comma."""
        body = dump_line(choices)
        return f'data: {self._chunk_head}, "choices": {body}{tail}}}\n\n'.encode()


class ChatFormat:
    """Chat completions."""

    prefix = "chatcmpl"
    whole_object = "chat.completion"
    chunk_object = "chat.completion.chunk"
    text_frame = ('"delta": {"content": ', '}, "logprobs": null, "finish_reason": null')

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def whole(self, choice: Choice) -> dict[str, Json]:
        """Return a complete choice."""
        part = choice.part
        message: dict[str, Json] = {"role": "assistant", "content": part.text, "refusal": None}
        if part.reasoning:
            message["reasoning_content"] = part.reasoning
        if part.tool_calls:
            message["content"] = part.text or None
            message["tool_calls"] = _calls(choice)
        return {"index": choice.index, "message": message, **self._rest(choice)}

    def opening(self, choice: Choice) -> dict[str, Json] | None:
        """Return the chunk that names the role."""
        delta: dict[str, Json] = {"role": "assistant", "content": ""}
        return {"index": choice.index, "delta": delta, "logprobs": None, "finish_reason": None}

    def chunk(self, choice: Choice) -> dict[str, Json]:
        """Return a part of a choice."""
        part = choice.part
        delta: dict[str, Json] = {}
        if part.reasoning:
            delta["reasoning_content"] = part.reasoning
        if part.text:
            delta["content"] = part.text
        if part.tool_calls:
            calls = enumerate(_calls(choice), choice.first_call)
            delta["tool_calls"] = [{"index": i, **call} for i, call in calls]
        return {"index": choice.index, "delta": delta, **self._rest(choice)}

    def _rest(self, choice: Choice) -> dict[str, Json]:
        logprobs: Json = None
        if choice.logprobs:
            content = [show_token(self._tokenizer, entry) for entry in choice.logprobs]
            logprobs = {"content": content, "refusal": None}
        return {"logprobs": logprobs, "finish_reason": choice.finish}


def _calls(choice: Choice) -> list[dict[str, Json]]:
    return [
        {
            "id": f"call_{new_id()}",
            "type": "function",
            "function": {"name": call.name, "arguments": call.arguments},
        }
        for call in choice.part.tool_calls
    ]


class TextFormat:
    """Plain completions."""

    prefix = "cmpl"
    whole_object = chunk_object = "text_completion"
    text_frame = ('"text": ', ', "logprobs": null, "finish_reason": null')

    def __init__(self, tokenizer: Tokenizer, prompt_logprobs: int | None = None) -> None:
        """`prompt_logprobs`: how many alternatives to show at each token of the prompt; None: nothing."""
        self._tokenizer = tokenizer
        self._num_prompt_logprobs = prompt_logprobs
        self._texts: dict[int, Detokenizer] = {}
        self._offsets: dict[int, int] = {}

    def whole(self, choice: Choice) -> dict[str, Json]:
        """Return a complete choice."""
        shown = self.chunk(choice)
        if self._num_prompt_logprobs is not None:
            shown["prompt_logprobs"] = [None, *map(self._prompt_logprobs, choice.prompt_logprobs)]
        return shown

    def opening(self, choice: Choice) -> dict[str, Json] | None:
        """Return None: a plain completion has no opening."""
        return None

    def chunk(self, choice: Choice) -> dict[str, Json]:
        """Return a part of a choice."""
        return {
            "index": choice.index,
            "text": choice.part.text,
            "logprobs": self._logprobs(choice) if choice.logprobs else None,
            "finish_reason": choice.finish,
        }

    def _logprobs(self, choice: Choice) -> dict[str, Json]:
        return {
            "tokens": [self._spell(entry.sampled) for entry in choice.logprobs],
            "token_logprobs": [_known(entry.sampled.logprob) for entry in choice.logprobs],
            "top_logprobs": [
                {self._spell(top): clamp(top.logprob) for top in (*entry.top, entry.sampled)}
                if _known(entry.sampled.logprob) is not None
                else None
                for entry in choice.logprobs
            ],
            "text_offset": [self._offset(choice.index, entry.sampled) for entry in choice.logprobs],
        }

    def _prompt_logprobs(self, entry: TokenLogprobs) -> dict[str, Json]:
        """Return alternatives by token id, the prompt's own token among them."""
        tops = (*entry.top[: self._num_prompt_logprobs], entry.sampled)
        return {
            str(top.token_id): {"logprob": clamp(top.logprob), "decoded_token": self._spell(top)}
            for top in tops
        }

    def _offset(self, index: int, entry: TokenLogprob) -> int:
        """Return where in the choice's text the token begins, or the character that it is a part of."""
        text = self._texts.setdefault(index, Detokenizer(self._tokenizer))
        offset = self._offsets.get(index, 0)
        self._offsets[index] = offset + len(text.push(entry.token_id))
        return offset

    def _spell(self, entry: TokenLogprob) -> str:
        """Return a token's text, or "bytes:\\xe2\\x82" of one that is no whole characters, as OpenAI does."""
        spelled = self._tokenizer.token_bytes(entry.token_id)
        try:
            return spelled.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in spelled)


def _known(logprob: float) -> float | None:
    return None if math.isnan(logprob) else clamp(logprob)


def show_usage(usages: Sequence[Usage], num_samples: int) -> dict[str, Json]:
    """Return OpenAI's usage.

    Args:
        usages: in order of choices; a prompt is counted once for its `num_samples` answers.
    """
    prompts = usages[::num_samples]
    prompt_tokens = sum(usage.prompt_tokens for usage in prompts)
    completion_tokens = sum(usage.completion_tokens for usage in usages)
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "prompt_tokens_details": {"cached_tokens": sum(usage.cached_tokens for usage in prompts)},
    }
