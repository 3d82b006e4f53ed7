"""All requests of a decode worker: between engine and receiver, on the event loop.

COMMIT alone does not wait for the loop: the receiver's thread checks it and hands the request to the
engine (`fill`). Whether COMMIT or something else came first, the reservation's phase decides.

Before COMMIT:
    FAIL           the reservation stays for one more lease, so that the gateway can open it again
                   for another prefill worker under the next epoch
    lease expired  the reservation is freed; the gateway learns LEASE_EXPIRED on its stream
    end            likewise, without a word
In each the blocks are fenced first: the engine gets them back when the receiver says that no peer
can write into them any more. The receiver sweeps leases on its own thread.

A prompt may be computed in its own reservation instead: once no peer can write into its blocks, the
engine runs it there, and the first token goes to the Prefill call that asked for it. There is nothing
to commit, no lease, and no second copy.

After COMMIT, or when that has begun, the reservation cannot be opened again (RESERVATION_GONE); a
gateway that missed the first token cancels the request and starts it anew.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import logging
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial

from baton.v1 import decode_pb2
from engine.errors import UnknownRequestError
from engine.events import (
    Event,
    RequestCancelled,
    RequestFailed,
    ReservationGranted,
    StepEvents,
    TokenSampled,
)
from kvtransfer.errors import KvTransferError
from kvtransfer.events import Committed, Failed, LeaseExpired, ReceiverEvent
from kvtransfer.receiver import Receiver
from services.common.errors import BatonError, ErrorReason
from services.common.logs import log
from services.decode.reservation import FirstToken, InPlace, Phase, Reservation
from services.worker.answers import failure_event, token_event
from services.worker.engine_host import EngineHost
from services.worker.errors import translate
from services.worker.intake import invalid
from services.worker.metrics import WorkerMetrics
from services.worker.requests_in_flight import InFlight

Tell = Callable[[str, int, list[decode_pb2.TokenEvent]], None]

_logger = logging.getLogger(__name__)


class Reservations:
    """Holds every request from `open` until the engine holds nothing for it any more.

    Args:
        lease_s: granted to prefill workers, seconds.
        tell: sends events of a step to a gateway: (gateway id, step, events).
    Attributes:
        held: requests by reservation id.
    """

    def __init__(
        self, host: EngineHost, receiver: Receiver, lease_s: float, metrics: WorkerMetrics, tell: Tell
    ) -> None:
        self.held: InFlight[Reservation] = InFlight()
        self._engine = host.engine
        self._groups = host.built.layout.groups
        self._receiver = receiver
        self._lease_s = lease_s
        self._metrics = metrics
        self._tell = tell
        self._step = 0
        self._by_request: dict[str, Reservation] = {}
        self._by_transfer: dict[str, Reservation] = {}

    # What gateways ask for.

    async def open(self, reservation: Reservation) -> None:
        """Queue a request and wait until its blocks are set aside and may be written to.

        Raises:
            BatonError: INVALID_ARGUMENT, or what ended it meanwhile.
            EngineError: see Engine.reserve.
        """
        if reservation.request_id in self._by_request:
            raise invalid("request_id", f"{reservation.request_id!r} is in use on this worker")
        if reservation.transfer_id in self._by_transfer:
            raise invalid("transfer_id", f"{reservation.transfer_id!r} is in use on this worker")
        self._engine.reserve(reservation.request)
        self.held.add(reservation.reservation_id, reservation)
        self._by_request[reservation.request_id] = reservation
        self._by_transfer[reservation.transfer_id] = reservation
        try:
            # Shielded: a grant may come before this task hears that it was cancelled.
            await asyncio.shield(reservation.granted)
        except asyncio.CancelledError:
            self.end(reservation, BatonError(ErrorReason.CANCELLED, "the gateway ended the call"))
            raise

    def reopen(self, reservation_id: str, request_id: str, transfer_id: str) -> Reservation:
        """Let another prefill worker fill a reservation; the one before is shut out first.

        Raises:
            BatonError: RESERVATION_GONE, INVALID_ARGUMENT.
        """
        reservation = self._reserved(reservation_id)
        if (reservation.request_id, reservation.transfer_id) != (request_id, transfer_id):
            raise invalid("reservation_id", "was made for another request_id or transfer_id")
        if not reservation.reopen():
            raise _gone()
        self._expect(reservation, reservation.granted.result())
        return reservation

    def compute(
        self, reservation_id: str, epoch: int, prefill_id: str, token_ids: Sequence[int]
    ) -> Reservation:
        """Compute a prompt in its reservation; `in_place` tells when the first token is there.

        Raises:
            BatonError: RESERVATION_GONE, INVALID_ARGUMENT.
        """
        reservation = self._reserved(reservation_id)
        if reservation.epoch != epoch:
            raise BatonError(
                ErrorReason.RESERVATION_GONE, f"target.epoch: {reservation.epoch} superseded {epoch}"
            )
        if list(reservation.request.token_ids) != list(token_ids):
            raise invalid("token_ids", "are not those that were reserved for")
        if not reservation.advance(Phase.RESERVED, Phase.COMPUTING, epoch):
            raise _gone()
        del self._by_transfer[reservation.transfer_id]
        fenced = self._receiver.release(reservation.transfer_id)
        reservation.in_place = InPlace(prefill_id, fenced)
        fenced.add_done_callback(partial(self._compute_fenced, reservation_id))
        return reservation

    def cancel(self, request_id: str) -> None:
        """End a request by the gateway's id; idempotent."""
        reservation = self._by_request.get(request_id)
        if reservation is not None:
            self.end(reservation, BatonError(ErrorReason.CANCELLED, "cancelled"))

    def cancel_computing(self, prefill_id: str) -> None:
        """End the request that a Prefill call computes in place; idempotent."""
        for reservation in self.held:
            in_place = reservation.in_place
            if reservation.phase is Phase.COMPUTING and in_place and in_place.prefill_id == prefill_id:
                self.end(reservation, BatonError(ErrorReason.CANCELLED, "cancelled"))

    def end_all_of(self, gateway_id: str, error: BatonError) -> int:
        """End all requests of a gateway that was lost; returns how many."""
        lost = [r for r in self._by_request.values() if r.gateway_id == gateway_id]
        for reservation in lost:
            self.end(reservation, error)
            self._metrics.count_error(error)
        return len(lost)

    def fail_all(self, error: BatonError) -> None:
        """End all requests and tell their gateways why."""
        for reservation in tuple(self._by_request.values()):
            self._fail(reservation, error)

    def end(self, reservation: Reservation, error: BatonError) -> None:
        """Stop a request in any phase; idempotent.

        Args:
            error: for a Reserve, or a Prefill of a prompt computed in place, that still waits.
        """
        was = reservation.finish()
        reservation.end_decode(error.reason.name)
        engine_id = reservation.reservation_id
        fenced = self._unlist(reservation)
        if was is Phase.RESERVED and fenced is not None:
            fenced.add_done_callback(lambda _: self._engine.cancel(engine_id))
        elif was is Phase.COMPUTING and reservation.in_place is not None:
            reservation.in_place.fenced.add_done_callback(lambda _: self._engine.cancel(engine_id))
        elif was is not Phase.ENDED:
            self._engine.cancel(engine_id)
        if not reservation.granted.done():
            reservation.granted.set_exception(error)
        self._fail_first(reservation, error)

    # What the receiver says.

    def fill(self, event: ReceiverEvent, at: float) -> None:
        """Let the engine begin, if the event is a COMMIT that agrees; on the receiver's thread."""
        reservation = self._by_transfer.get(event.transfer_id)
        if not isinstance(event, Committed) or reservation is None:
            return
        try:
            commit = reservation.check_commit(event, self._groups)
        except BatonError:
            return  # on_receiver_event, which comes to the same, says so
        if reservation.advance(Phase.RESERVED, Phase.RUNNING, event.epoch):
            reservation.begin_decode(commit.traceparent)
            # An engine that ended the request meanwhile says so in an event of its own.
            with contextlib.suppress(UnknownRequestError):
                self._engine.commit(reservation.reservation_id, commit.first_token)

    def on_receiver_event(self, event: ReceiverEvent, at: float) -> None:
        """Follow one event."""
        reservation = self._by_transfer.get(event.transfer_id)
        if reservation is None:
            return
        match event:
            case Committed() if event.epoch == reservation.epoch:
                self._on_committed(reservation, event)
            case LeaseExpired() if event.epoch == reservation.epoch:
                self._lapse(reservation, event.epoch)
            case Failed() if event.epoch == reservation.epoch:
                self._on_failed(reservation, event)
            case _:
                pass

    def _on_committed(self, reservation: Reservation, event: Committed) -> None:
        try:
            commit = reservation.check_commit(event, self._groups)
        except BatonError as error:
            self._fail(reservation, error)
            return
        self._metrics.count_handoff(
            "received", commit.transport or "unknown", event.num_blocks, event.num_bytes
        )
        del self._by_transfer[reservation.transfer_id]
        self._receiver.release(reservation.transfer_id)

    def _on_failed(self, reservation: Reservation, event: Failed) -> None:
        # The receiver counts no lease for a failed attempt.
        loop = asyncio.get_running_loop()
        loop.call_later(self._lease_s, self._lapse, reservation, event.epoch)
        self._metrics.count_failed_handoff("failed")
        log(
            _logger,
            logging.INFO,
            "hand-off failed; the reservation is kept for a lease",
            request_id=reservation.request_id,
            epoch=event.epoch,
            reason=event.reason,
            error=event.message,
        )

    def _lapse(self, reservation: Reservation, epoch: int) -> None:
        if reservation.phase is Phase.RESERVED and reservation.epoch == epoch:
            self._metrics.count_failed_handoff("lease_expired")
            message = f"no sign of life from the prefill worker for {self._lease_s:g} s"
            self._fail(reservation, BatonError(ErrorReason.LEASE_EXPIRED, message))

    # What the engine says.

    def on_step(self, step: StepEvents, at: float) -> None:
        """Follow the events of a step; each gateway concerned gets one message."""
        self._step = step.step
        owed: dict[str, list[decode_pb2.TokenEvent]] = defaultdict(list)
        for event in step.events:
            reservation = self.held.get(event.request_id)
            told = None if reservation is None else self._on_engine_event(reservation, event, at)
            if reservation is not None and told is not None:
                owed[reservation.gateway_id].append(told)
        for gateway_id, events in owed.items():
            self._tell(gateway_id, step.step, events)

    def _on_engine_event(
        self, reservation: Reservation, event: Event, at: float
    ) -> decode_pb2.TokenEvent | None:
        """Follow one event; returns what the gateway is to be told on its stream."""
        told = None
        match event:
            case TokenSampled() if reservation.phase is Phase.COMPUTING:
                self._on_first_token(reservation, event, at)
            case TokenSampled() if reservation.phase is Phase.RUNNING:
                told = token_event(reservation.request_id, event)
            case ReservationGranted() if reservation.phase is Phase.QUEUED:
                self._on_granted(reservation, event)
            case RequestFailed():
                told = self._on_request_failed(reservation, event)
            case RequestCancelled():
                self._drop(reservation)
            case _:
                pass
        if isinstance(event, TokenSampled) and event.finish_reason is not None:
            # In any phase: of one that ends by itself while it is cancelled, no RequestCancelled follows.
            self._drop(reservation)
        return told

    def _on_granted(self, reservation: Reservation, event: ReservationGranted) -> None:
        try:
            self._expect(reservation, event)
        except KvTransferError as error:
            refused = translate(error) or BatonError(ErrorReason.INTERNAL, str(error))
            self.end(reservation, refused)
        else:
            reservation.granted.set_result(event)
            reservation.advance(Phase.QUEUED, Phase.RESERVED, reservation.epoch)

    def _on_first_token(self, reservation: Reservation, event: TokenSampled, at: float) -> None:
        assert reservation.in_place is not None
        if event.finish_reason is None:
            reservation.advance(Phase.COMPUTING, Phase.RUNNING, reservation.epoch)
            reservation.begin_decode()
        if not reservation.in_place.first.done():
            reservation.in_place.first.set_result(FirstToken(event, at))

    def _on_request_failed(
        self, reservation: Reservation, event: RequestFailed
    ) -> decode_pb2.TokenEvent | None:
        error = translate(event.error) or BatonError(ErrorReason.INTERNAL, str(event.error))
        was = self._drop(reservation)
        if was is Phase.QUEUED:
            reservation.granted.set_exception(error)
        self._fail_first(reservation, error)
        if was not in (Phase.RESERVED, Phase.RUNNING):
            return None
        self._metrics.count_error(error)
        return failure_event(reservation.request_id, error)

    # Bookkeeping.

    def _reserved(self, reservation_id: str) -> Reservation:
        reservation = self.held.get(reservation_id)
        if reservation is None or reservation.phase is not Phase.RESERVED:
            raise _gone()
        return reservation

    def _compute_fenced(self, engine_id: str, fenced: concurrent.futures.Future[None]) -> None:
        """Let the engine begin; on the receiver's thread. A receiver that was closed never fences."""
        if fenced.exception() is None:
            # An engine that ended the request meanwhile says so in an event of its own.
            with contextlib.suppress(UnknownRequestError):
                self._engine.compute(engine_id)

    def _fail_first(self, reservation: Reservation, error: BatonError) -> None:
        if reservation.in_place is not None and not reservation.in_place.first.done():
            reservation.in_place.first.set_exception(error)

    def _expect(self, reservation: Reservation, granted: ReservationGranted) -> None:
        self._receiver.expect(reservation.transfer_id, reservation.epoch, granted.block_ids, self._lease_s)

    def _fail(self, reservation: Reservation, error: BatonError) -> None:
        """End a request and tell its gateway why: in the call that waits for it, or on its stream."""
        waits = reservation.phase in (Phase.QUEUED, Phase.COMPUTING)
        self.end(reservation, error)
        if not waits:
            self._metrics.count_error(error)
            self._tell(reservation.gateway_id, self._step, [failure_event(reservation.request_id, error)])

    def _drop(self, reservation: Reservation) -> Phase:
        """Forget a request for which the engine holds nothing any more; returns the phase it was in."""
        was = reservation.finish()
        self._unlist(reservation)
        self.held.remove(reservation.reservation_id)
        return was

    def _unlist(self, reservation: Reservation) -> concurrent.futures.Future[None] | None:
        """Let nobody find a request any more.

        Returns:
            If a transfer could fill it: done when no peer can write into its blocks any more.
        """
        reservation.end_decode()
        if self._by_request.get(reservation.request_id) is reservation:
            del self._by_request[reservation.request_id]
        if self._by_transfer.get(reservation.transfer_id) is not reservation:
            return None
        del self._by_transfer[reservation.transfer_id]
        return self._receiver.release(reservation.transfer_id)


def _gone() -> BatonError:
    return BatonError(
        ErrorReason.RESERVATION_GONE, "reservation_id: released, lapsed, filled already, or being computed"
    )
