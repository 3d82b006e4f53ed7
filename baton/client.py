"""The client.

with Client("127.0.0.1:50050") as client:
    for event in client.chat([{"role": "user", "content": "Hello"}], max_tokens=64):
        if isinstance(event, Delta):
            print(event.text, end="")
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from types import TracebackType
from typing import Self, TypeVar, Unpack

import grpc

from baton.connection import OPEN, Credentials
from baton.generation import (
    Answer,
    Event,
    GenerateOptions,
    Message,
    chat_messages,
    event_of,
    generate_request,
)
from baton.rpc_errors import request_error
from baton.v1 import inference_pb2, inference_pb2_grpc, registry_pb2, registry_pb2_grpc

DEFAULT_ADDRESS = "127.0.0.1:50050"
GENERATE_TIMEOUT_S = 600.0
CALL_TIMEOUT_S = 10.0

_Request = TypeVar("_Request", contravariant=True)
_Response = TypeVar("_Response", covariant=True)


class Client:
    """Talks to one gateway; may be shared by threads.

    Client("llm.example.com:50050", Credentials(api_key="baton_...", ca="ca.pem"))

    A call that fails raises a baton.errors.RequestError, and DeadlineError after its `timeout_s`.
    """

    def __init__(self, address: str = DEFAULT_ADDRESS, credentials: Credentials = OPEN) -> None:
        self.address = address
        self._metadata = credentials.metadata
        self._channel = credentials.channel(address)
        self._inference = inference_pb2_grpc.InferenceServiceStub(self._channel)
        self._registry = registry_pb2_grpc.RegistryServiceStub(self._channel)

    def generate(
        self,
        text: str | None = None,
        *,
        messages: Sequence[Message] | None = None,
        token_ids: Sequence[int] | None = None,
        timeout_s: float = GENERATE_TIMEOUT_S,
        **options: Unpack[GenerateOptions],
    ) -> Generator[Event, None, None]:
        """Stream the answer to a text, a conversation, or token ids: Started, Deltas, Finished.

        Closing the generator before its end cancels the request.
        """
        request = generate_request(text, messages, token_ids, **options)
        return self._stream(request, timeout_s)

    def chat(
        self,
        messages: Sequence[Message],
        *,
        timeout_s: float = GENERATE_TIMEOUT_S,
        **options: Unpack[GenerateOptions],
    ) -> Generator[Event, None, None]:
        """Stream the next turn of a conversation."""
        return self.generate(messages=messages, timeout_s=timeout_s, **options)

    def complete(
        self,
        text: str | None = None,
        *,
        messages: Sequence[Message] | None = None,
        token_ids: Sequence[int] | None = None,
        timeout_s: float = GENERATE_TIMEOUT_S,
        **options: Unpack[GenerateOptions],
    ) -> Answer:
        """Return the whole answer."""
        request = generate_request(text, messages, token_ids, **options)
        return Answer.from_events(list(self._stream(request, timeout_s)))

    def tokenize(self, text: str, *, model: str = "", timeout_s: float = CALL_TIMEOUT_S) -> list[int]:
        """Return the tokens of a text, without a chat template."""
        request = inference_pb2.TokenizeRequest(model=model, text=text)
        return list(self._call(self._inference.Tokenize, request, timeout_s).token_ids)

    def tokenize_chat(
        self, messages: Sequence[Message], *, model: str = "", timeout_s: float = CALL_TIMEOUT_S
    ) -> list[int]:
        """Return the tokens of a conversation, chat template included."""
        request = inference_pb2.TokenizeRequest(model=model, messages=chat_messages(messages))
        return list(self._call(self._inference.Tokenize, request, timeout_s).token_ids)

    def models(self, *, timeout_s: float = CALL_TIMEOUT_S) -> list[inference_pb2.Model]:
        """Return the models that can be asked for."""
        request = inference_pb2.ListModelsRequest()
        return list(self._call(self._inference.ListModels, request, timeout_s).models)

    def workers(self, *, timeout_s: float = CALL_TIMEOUT_S) -> registry_pb2.ListWorkersResponse:
        """Return the cluster as the gateway sees it: every worker, and its own queues."""
        workers: registry_pb2.ListWorkersResponse = self._call(
            self._registry.ListWorkers, registry_pb2.ListWorkersRequest(), timeout_s
        )
        return workers

    def close(self) -> None:
        """Close the connection; running streams end with CancelledError."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _call(self, method: Callable[..., _Response], request: _Request, timeout_s: float) -> _Response:
        try:
            return method(request, timeout=timeout_s, metadata=self._metadata)
        except grpc.RpcError as error:
            raise request_error(error, self.address) from None

    def _stream(
        self, request: inference_pb2.GenerateRequest, timeout_s: float
    ) -> Generator[Event, None, None]:
        call = self._inference.Generate(request, timeout=timeout_s, metadata=self._metadata)
        try:
            for response in call:
                yield event_of(response)
        except grpc.RpcError as error:
            raise request_error(error, self.address) from None
        finally:
            call.cancel()
