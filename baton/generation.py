"""What a generation is made of: the request from plain arguments, its events, and the whole answer.

Events are the protocol's own messages (protos/baton/v1/inference.proto says what each field means):
`Started`, then `Delta`s, then `Finished`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypedDict, Unpack

from google.protobuf.message import Message as ProtobufMessage

from baton.errors import InvalidRequestError, ServerError
from baton.v1 import inference_pb2, sampling_pb2
from baton.v1.inference_pb2 import Delta, Finished, Started

Event = Started | Delta | Finished
Message = Mapping[str, str | Sequence[inference_pb2.ToolCall]]
"""One turn of a conversation: {"role": ..., "content": ...}, or any fields of baton.v1.ChatMessage."""


class GenerateOptions(TypedDict, total=False):
    """What may be said beside the prompt; baton.v1.SamplingParams has ranges and defaults."""

    model: str
    priority: int
    cache_salt: str
    request_id: str
    tools: Sequence[inference_pb2.Tool]
    tool_choice: inference_pb2.ToolChoice
    template_variables: str
    max_tokens: int
    temperature: float
    top_p: float
    top_k: int
    min_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    logit_bias: Mapping[int, float]
    seed: int
    stop: Sequence[str]
    stop_token_ids: Sequence[int]
    ignore_eos: bool
    min_tokens: int
    logprobs: int
    prompt_logprobs: int
    grammar: sampling_pb2.Grammar


_REQUEST_FIELDS = (
    "model",
    "priority",
    "cache_salt",
    "request_id",
    "tools",
    "tool_choice",
    "template_variables",
)


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole generation.

    Attributes:
        text: all of the text.
        token_ids: all of the tokens.
        reasoning: what the model thought before, where its chat template marks it.
        tool_calls: in order.
        started: the first message of the stream.
        finished: the last one: reason, usage, timing, hand-off.
    """

    text: str
    token_ids: tuple[int, ...]
    reasoning: str
    tool_calls: tuple[inference_pb2.ToolCall, ...]
    started: Started
    finished: Finished

    @classmethod
    def from_events(cls, events: Sequence[Event]) -> Answer:
        """Join the events of one stream.

        Raises:
            ServerError: the stream is not whole.
        """
        if not events or not isinstance(events[0], Started) or not isinstance(events[-1], Finished):
            raise ServerError("the stream ended without `finished`", "INCOMPLETE_STREAM")
        deltas = [event for event in events if isinstance(event, Delta)]
        return cls(
            text="".join(delta.text for delta in deltas),
            token_ids=tuple(token for delta in deltas for token in delta.token_ids),
            reasoning="".join(delta.reasoning for delta in deltas),
            tool_calls=tuple(call for delta in deltas for call in delta.tool_calls),
            started=events[0],
            finished=events[-1],
        )


def generate_request(
    text: str | None,
    messages: Sequence[Message] | None,
    token_ids: Sequence[int] | None,
    **options: Unpack[GenerateOptions],
) -> inference_pb2.GenerateRequest:
    """Return the request for exactly one of a text, a conversation, or token ids.

    Raises:
        InvalidRequestError: none or several of them; an unknown option; a value of the wrong type.
    """
    if sum(given is not None for given in (text, messages, token_ids)) != 1:
        raise _invalid("input", "give exactly one of text, messages and token_ids")
    request = inference_pb2.GenerateRequest()
    for name, value in options.items():
        if name not in GenerateOptions.__annotations__:
            raise _invalid(name, "no such option")
        if value is None:
            continue
        target = request if name in _REQUEST_FIELDS else request.sampling
        try:
            _set(target, name, value)
        except (TypeError, ValueError) as error:
            raise _invalid(name, str(error)) from error
    try:
        if text is not None:
            request.text = text
        elif messages is not None:
            request.messages.CopyFrom(chat_messages(messages))
        else:
            request.token_ids.ids.extend(token_ids or ())
            request.token_ids.SetInParent()
    except (TypeError, ValueError) as error:
        raise _invalid("input", str(error)) from error
    return request


def chat_messages(messages: Sequence[Message]) -> inference_pb2.ChatMessages:
    """Return a conversation as the protocol has it.

    Raises:
        InvalidRequestError: a turn has a field that there is not, or a value of the wrong type.
    """
    turns = inference_pb2.ChatMessages()
    for index, message in enumerate(messages):
        try:
            turns.messages.add(**message)
        except (TypeError, ValueError) as error:
            raise _invalid(f"messages[{index}]", str(error)) from error
    return turns


def event_of(response: inference_pb2.GenerateResponse) -> Event:
    """Return what one message of the stream carries."""
    match response.WhichOneof("event"):
        case "started":
            return response.started
        case "delta":
            return response.delta
        case "finished":
            return response.finished
    raise ServerError("the gateway sent an event that this client does not know", "UNKNOWN_EVENT")


def _set(
    target: inference_pb2.GenerateRequest | sampling_pb2.SamplingParams, name: str, value: object
) -> None:
    if isinstance(value, ProtobufMessage):
        getattr(target, name).CopyFrom(value)
    elif isinstance(value, Mapping):
        getattr(target, name).update(value)
    elif isinstance(value, Sequence) and not isinstance(value, str):
        getattr(target, name).extend(value)
    else:
        setattr(target, name, value)


def _invalid(field: str, message: str) -> InvalidRequestError:
    return InvalidRequestError(f"{field}: {message}", "INVALID_ARGUMENT", field)
