"""Baton's own gRPC, through its client."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

from baton.aio import AsyncClient
from baton.errors import RequestError
from baton.generation import GenerateOptions
from baton.v1.inference_pb2 import Delta, Finished
from baton.v1.sampling_pb2 import FinishReason
from loadtest.errors import RequestFailed
from loadtest.record import Call
from loadtest.scenario import Scenario


class BatonGrpc:
    """Target for a Baton gateway; knows the tokens of every message, and where the time went."""

    def __init__(self, scenario: Scenario) -> None:
        self._scenario = scenario
        self._client: AsyncClient | None = None

    async def open(self) -> None:
        """Connect, and check that the prompts' token ids exist."""
        self._client = AsyncClient(self._scenario.target.removeprefix("grpc://"))
        try:
            models = await self._client.models()
        except RequestError as error:
            raise RequestFailed(error.reason, str(error)) from error
        model = next((model for model in models if self._scenario.model in ("", model.name)), None)
        if model is None:
            raise RequestFailed("MODEL_NOT_FOUND", f"no model {self._scenario.model!r} is served")
        if not self._scenario.corpus and self._scenario.last_token >= model.vocab_size:
            raise RequestFailed("INVALID_ARGUMENT", f"token ids must be below {model.vocab_size}")

    def prepare(self, call: Call) -> GenerateOptions:
        """Return the request's options."""
        scenario = self._scenario
        return GenerateOptions(
            model=scenario.model,
            max_tokens=call.request.output_tokens,
            temperature=scenario.temperature,
            seed=scenario.seed + call.request.index,
            ignore_eos=not scenario.stop_at_eos,
            cache_salt=call.cache_salt,
        )

    async def answer(self, call: Call, wire: object) -> None:
        """Stream one answer into the call's record."""
        assert self._client is not None
        options: GenerateOptions = wire  # type: ignore[assignment]
        events = self._client.generate(
            call.prompt if isinstance(call.prompt, str) else None,
            token_ids=None if isinstance(call.prompt, str) else call.prompt,
            timeout_s=self._scenario.timeout_s,
            **options,
        )
        is_whole = False
        try:
            async with aclosing(events):
                async for event in events:
                    if isinstance(event, Delta):
                        if event.token_ids:
                            call.tokens(len(event.token_ids), list(event.token_ids))
                    elif isinstance(event, Finished):
                        _finish(call, event)
                        is_whole = True
                    if call.request.read_delay_s:
                        await asyncio.sleep(call.request.read_delay_s)
        except RequestError as error:
            raise RequestFailed(error.reason, str(error)) from error
        if not is_whole:
            raise RequestFailed("INCOMPLETE_STREAM", "the stream ended without `finished`")

    async def close(self) -> None:
        """Close the connection."""
        if self._client is not None:
            await self._client.close()


def _finish(call: Call, finished: Finished) -> None:
    record = call.record
    record.finish_reason = FinishReason.Name(finished.reason).removeprefix("FINISH_REASON_").lower()
    record.prompt_tokens = finished.usage.prompt_tokens
    record.cached_tokens = finished.usage.cached_tokens
    record.completion_tokens = finished.usage.completion_tokens
    record.queue_s = finished.timing.queue_s
    if finished.HasField("handoff"):
        handoff = finished.handoff
        record.exposed_s = handoff.exposed_s
        record.prefill_worker, record.decode_worker = handoff.prefill_worker, handoff.decode_worker
        record.transport, record.retries = handoff.transport, handoff.retries
