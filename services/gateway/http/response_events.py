"""The object that /v1/responses answers with, and the events that tell how it grows.

response.created, response.in_progress
for each item (reasoning, the message):
    response.output_item.added, response.content_part.added
    response.output_text.delta | response.reasoning_text.delta ...
    response.output_text.done | response.reasoning_text.done
    response.content_part.done, response.output_item.done
for each call of a tool, which comes as a whole:
    response.output_item.added
    response.function_call_arguments.delta, response.function_call_arguments.done
    response.output_item.done
response.completed | response.incomplete | response.failed
"""

from __future__ import annotations

import time

from baton.v1.sampling_pb2 import TokenLogprobs
from services.common.errors import BatonError
from services.common.ids import new_id
from services.gateway.http.formats import Choice
from services.gateway.http.logprobs import show_token
from services.gateway.http.reader import Reader
from services.gateway.http.responses_schema import ResponsesBody
from services.gateway.http.values import Json
from services.gateway.text.tokenizer import Tokenizer
from services.gateway.text.tool_calls import ToolCall

Event = dict[str, Json]


def _tools(body: ResponsesBody) -> Json:
    return [
        {
            "type": "function",
            "name": tool.name,
            "description": tool.description,
            "parameters": tool.parameters,
            "strict": bool(tool.strict),
        }
        for tool in body.tools or []
    ]


def _tool_choice(body: ResponsesBody) -> Json:
    choice = body.tool_choice
    return choice or "auto" if choice is None or isinstance(choice, str) else choice.model_dump()


def _text_settings(body: ResponsesBody) -> Json:
    asked = body.text.model_dump(by_alias=True, exclude_none=True) if body.text else {}
    return {"format": {"type": "text"}, **asked}


class _Item:
    """The output item that is under way.

    Args:
        kind: "message" or "reasoning".
    """

    def __init__(self, kind: str, index: int) -> None:
        self.is_message = kind == "message"
        self.id = f"{'msg' if self.is_message else 'rs'}_{new_id()}"
        self.index = index
        self.text = ""
        self.logprobs: list[Json] = []
        self.delta_type = "output_text" if self.is_message else "reasoning_text"

    def part(self) -> dict[str, Json]:
        """Return the content part."""
        if not self.is_message:
            return {"type": "reasoning_text", "text": self.text}
        return {"type": "output_text", "text": self.text, "annotations": [], "logprobs": list(self.logprobs)}

    def show(self, status: str) -> dict[str, Json]:
        """Return the item; without content as long as nothing was said of it."""
        content: list[Json] = [] if status == "in_progress" else [self.part()]
        shown: dict[str, Json] = {"id": self.id, "status": status, "content": content}
        if self.is_message:
            return {**shown, "type": "message", "role": "assistant"}
        return {**shown, "type": "reasoning", "summary": []}


class ResponseWriter:
    """One response.

    Attributes:
        response: the object, as far as it has grown.
    """

    def __init__(self, body: ResponsesBody, model: str, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._num_events = 0
        self._output: list[Json] = []
        self._item: _Item | None = None
        self._has_answer = False
        self.response: dict[str, Json] = {
            "id": f"resp_{new_id()}",
            "object": "response",
            "created_at": int(time.time()),
            "status": "in_progress",
            "background": False,
            "error": None,
            "incomplete_details": None,
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "metadata": body.metadata or {},
            "model": model,
            "output": self._output,
            "parallel_tool_calls": body.parallel_tool_calls is not False,
            "previous_response_id": None,
            "reasoning": {"effort": None, "summary": None},
            "service_tier": "default",
            "store": False,
            "temperature": 1.0 if body.temperature is None else body.temperature,
            "text": _text_settings(body),
            "tool_choice": _tool_choice(body),
            "tools": _tools(body),
            "top_logprobs": body.top_logprobs or 0,
            "top_p": 1.0 if body.top_p is None else body.top_p,
            "truncation": "disabled",
            "usage": None,
            "user": body.user,
        }

    def open(self) -> list[Event]:
        """Begin."""
        return [self._response_event("created"), self._response_event("in_progress")]

    def add(self, choice: Choice) -> list[Event]:
        """Append a part of the answer."""
        events: list[Event] = []
        if choice.part.reasoning:
            events += self._grow("reasoning", choice.part.reasoning, [])
        if choice.part.text or choice.logprobs:
            events += self._grow("message", choice.part.text, choice.logprobs)
        for call in choice.part.tool_calls:
            events += self._call(call)
        return events

    def close(self, choice: Choice, reader: Reader) -> list[Event]:
        """End; every response has a message or a call, if an empty message."""
        events: list[Event] = []
        if not self._has_answer:
            events += self._grow("message", "", [])
        is_whole = choice.finish != "length"
        status = "completed" if is_whole else "incomplete"
        events += self._end_item(status)
        usage = reader.usage
        self.response["status"] = status
        self.response["usage"] = {
            "input_tokens": usage.prompt_tokens,
            "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
            "output_tokens": usage.completion_tokens,
            "output_tokens_details": {"reasoning_tokens": reader.reasoning_tokens},
            "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        }
        if not is_whole:
            self.response["incomplete_details"] = {"reason": "max_output_tokens"}
        return [*events, self._response_event(status)]

    def fail(self, error: BatonError) -> Event:
        """End with an error."""
        self.response["status"] = "failed"
        self.response["error"] = {"code": "server_error", "message": error.message}
        return self._response_event("failed")

    def _grow(self, kind: str, text: str, logprobs: list[TokenLogprobs]) -> list[Event]:
        events: list[Event] = []
        item = self._item
        if item is None or item.is_message != (kind == "message"):
            events += self._end_item("completed")
            item = self._item = _Item(kind, len(self._output))
            self._has_answer = self._has_answer or item.is_message
            events.append(
                self._event("output_item.added", output_index=item.index, item=item.show("in_progress"))
            )
            events.append(self._part_event(item, "content_part.added", part=item.part()))
        shown: list[Json] = [show_token(self._tokenizer, entry) for entry in logprobs]
        item.text += text
        item.logprobs += shown
        if text or shown:
            more: dict[str, Json] = {"logprobs": shown} if item.is_message else {}
            events.append(self._part_event(item, f"{item.delta_type}.delta", delta=text, **more))
        return events

    def _call(self, call: ToolCall) -> list[Event]:
        events = self._end_item("completed")
        self._has_answer = True
        index, item_id = len(self._output), f"fc_{new_id()}"
        done: dict[str, Json] = {
            "id": item_id,
            "type": "function_call",
            "status": "completed",
            "call_id": f"call_{new_id()}",
            "name": call.name,
            "arguments": call.arguments,
        }
        self._output.append(done)
        begun = {**done, "status": "in_progress", "arguments": ""}
        where: dict[str, Json] = {"item_id": item_id, "output_index": index}
        return [
            *events,
            self._event("output_item.added", output_index=index, item=begun),
            self._event("function_call_arguments.delta", **where, delta=call.arguments),
            self._event("function_call_arguments.done", **where, name=call.name, arguments=call.arguments),
            self._event("output_item.done", output_index=index, item=done),
        ]

    def _end_item(self, status: str) -> list[Event]:
        item, self._item = self._item, None
        if item is None:
            return []
        done = item.show(status)
        self._output.append(done)
        more: dict[str, Json] = {"logprobs": list(item.logprobs)} if item.is_message else {}
        return [
            self._part_event(item, f"{item.delta_type}.done", text=item.text, **more),
            self._part_event(item, "content_part.done", part=item.part()),
            self._event("output_item.done", output_index=item.index, item=done),
        ]

    def _part_event(self, item: _Item, kind: str, **fields: Json) -> Event:
        return self._event(kind, item_id=item.id, output_index=item.index, content_index=0, **fields)

    def _response_event(self, kind: str) -> Event:
        return self._event(kind, response={**self.response, "output": list(self._output)})

    def _event(self, kind: str, **fields: Json) -> Event:
        self._num_events += 1
        return {"type": f"response.{kind}", "sequence_number": self._num_events - 1, **fields}
