"""The connection to one incarnation of a worker."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import grpc

from baton.v1.decode_pb2 import DecodeServiceCancelRequest, ReserveRequest, ReserveResponse
from baton.v1.decode_pb2_grpc import DecodeServiceStub
from baton.v1.prefill_pb2 import PrefillRequest, PrefillResponse
from baton.v1.prefill_pb2_grpc import PrefillServiceStub
from services.common.channel import open_channel
from services.common.errors import BatonError, ErrorReason
from services.common.status import parse_status
from services.common.tls import Certificate
from services.gateway.registry import Registry, Worker
from services.gateway.session.steps import StepStream
from services.gateway.session.trace import Metadata

_CANCEL_TIMEOUT_S = 2.0
_CANCEL_TRIES = 3


class WorkerLink:
    """Calls to a worker; every one ends with WORKER_LOST as soon as the registry drops the worker.

    Attributes:
        steps: the token stream; None: the worker does not decode.
    """

    def __init__(
        self, worker: Worker, gateway_id: str, registry: Registry, certificate: Certificate | None
    ) -> None:
        self.worker = worker
        self._channel = open_channel(worker.info.address, certificate, "worker")
        self._prefill = PrefillServiceStub(self._channel)
        self._decode = DecodeServiceStub(self._channel)
        self._calls: set[grpc.aio.Call] = set()
        self._is_lost = False
        self._registry = registry
        self._told_keys: set[str] = set()
        self.steps: StepStream | None = None
        if worker.does_decode:
            self.steps = StepStream(self._decode, gateway_id, worker, registry)

    async def reserve(
        self, request: ReserveRequest, timeout_s: float, metadata: Metadata = ()
    ) -> ReserveResponse:
        """Call DecodeService.Reserve. BatonError: what the worker said, or WORKER_LOST."""
        # A sender that has just joined would else be refused until the next beat names it.
        new_keys = [key for key in self._registry.sender_keys() if key not in self._told_keys]
        request.sender_keys.extend(new_keys)
        call = self._decode.Reserve(request, timeout=timeout_s, metadata=metadata)
        self._calls.add(call)
        try:
            response: ReserveResponse = await call
            self._told_keys.update(new_keys)
            return response
        except asyncio.CancelledError:
            self._raise_if_lost()
            raise
        except grpc.aio.AioRpcError as status:
            raise parse_status(status) from status
        finally:
            self._calls.discard(call)

    async def prefill(
        self, request: PrefillRequest, timeout_s: float, metadata: Metadata = ()
    ) -> AsyncGenerator[PrefillResponse, None]:
        """Call PrefillService.Prefill; closing the iterator cancels the call."""
        call = self._prefill.Prefill(request, timeout=timeout_s, metadata=metadata)
        self._calls.add(call)
        try:
            async for response in call:
                yield response
        except asyncio.CancelledError:
            self._raise_if_lost()
            raise
        except grpc.aio.AioRpcError as status:
            raise parse_status(status) from status
        finally:
            self._calls.discard(call)
            call.cancel()

    async def cancel_decode(self, request_id: str) -> None:
        """Free what a request holds on this decode worker; tries again while the worker is listed."""
        for _ in range(_CANCEL_TRIES):
            if self._is_lost:
                return
            try:
                await self._decode.Cancel(
                    DecodeServiceCancelRequest(request_id=request_id), timeout=_CANCEL_TIMEOUT_S
                )
                return
            except grpc.aio.AioRpcError:
                await asyncio.sleep(0.1)

    def lose(self) -> None:
        """End all calls: the worker is gone."""
        self._is_lost = True
        for call in list(self._calls):
            call.cancel()
        if self.steps is not None:
            self.steps.close(self._lost_error())

    async def close(self) -> None:
        """Close the connection, after `lose`."""
        if self.steps is not None:
            await self.steps.closed()
        await self._channel.close()

    def _raise_if_lost(self) -> None:
        """Tell a call that `lose` cancelled from a task that was cancelled."""
        task = asyncio.current_task()
        if self._is_lost and task is not None and not task.cancelling():
            raise self._lost_error() from None

    def _lost_error(self) -> BatonError:
        return BatonError(ErrorReason.WORKER_LOST, f"worker {self.worker.info.worker_id!r} is gone")
