"""The receiving end: what may be written where, by whom, and until when.

The life of a transfer: `expect` when the blocks are reserved, events while it runs,
`release` before the blocks are used for anything else. One thread, the loop.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from functools import partial

from kvtransfer.block_store import open_blocks
from kvtransfer.curve import CurveKeys, Welcome
from kvtransfer.doorbell import DoorbellListener
from kvtransfer.errors import ClosedError, CorruptFrameError, InvalidTransferError, MalformedFrameError
from kvtransfer.events import Committed, ReceiverEvent
from kvtransfer.fake import FakeListener
from kvtransfer.fences import Fence, Fences
from kvtransfer.frames import (
    ANSWERED,
    HEADER_BYTES,
    MAX_CONTROL_BYTES,
    MAX_INCARNATION_BYTES,
    MAX_TRANSFER_ID_BYTES,
    Header,
    Kind,
    Payload,
    decode,
    encode,
    encode_id,
    parse,
)
from kvtransfer.host import host_id
from kvtransfer.inbound import Drop, InboundTransfer, Surroundings
from kvtransfer.io_loop import IoLoop
from kvtransfer.links import Listener, Route
from kvtransfer.locked_file import LockedFile
from kvtransfer.payloads import RejectReason, encode_reason
from kvtransfer.peer import Peer
from kvtransfer.region import Region
from kvtransfer.reservation import check_reservation
from kvtransfer.select import DIRECT, FAKE_SCHEME
from kvtransfer.zmq_tcp import ZmqListener

DEFAULT_WINDOW_BYTES = 16 << 20
_MIN_WINDOW_BLOCKS = 4

logger = logging.getLogger(__name__)


class Receiver:
    """Takes blocks into this worker's regions. Methods may be called from any thread.

    Attributes:
        peer: what senders must know; goes to them as `KvPeer`.
    """

    def __init__(
        self,
        worker_id: str,
        incarnation: str,
        regions: Sequence[Region],
        *,
        bind: str = "tcp://127.0.0.1:0",
        transports: Sequence[str],
        on_event: Callable[[ReceiverEvent], None],
        on_committed: Callable[[Committed], None] = lambda event: None,
        advertise_host: str = "",
        window_bytes: int = DEFAULT_WINDOW_BYTES,
        clock: Callable[[], float] = time.monotonic,
        curve: CurveKeys | None = None,
    ) -> None:
        """Bind and start the thread.

        Args:
            worker_id: stable name of this worker.
            incarnation: of this worker; frames that name another are dropped.
            regions: one a cache group, in the same order on every worker.
            bind: "tcp://host:port", port 0 for a free one; or "fake://name".
            transports: accepted ones, best first.
            on_event: called on the loop; must be quick and may call this object.
            on_committed: likewise, of a Committed, for who may read the blocks; on_event has it afterwards.
            advertise_host: host that peers are told instead of the bound one.
            window_bytes: unread bytes that one transfer may have under way (at least 4 blocks).
            clock: seconds, monotonic; for tests.
            curve: this worker's keys: only senders that `welcome` named may connect; None: all may.
        Raises:
            InvalidTransferError: no region, an incarnation of more than 40 bytes, or an address
                that cannot be bound.
        """
        encode_id("incarnation", incarnation, MAX_INCARNATION_BYTES)
        if not regions:
            raise InvalidTransferError("regions", "at least one is needed")
        self._regions = tuple(regions)
        self._incarnation = incarnation
        self._on_event = on_event
        self._on_committed = on_committed
        self._clock = clock
        self._inbound: dict[str, InboundTransfer] = {}
        self._releases: set[Future[None]] = set()
        self._drops: Counter[str] = Counter()
        self._fences = Fences(self._send_stop)
        self._welcome: Welcome | None = None
        largest = max(region.block_bytes for region in regions)
        self._listener: Listener
        if bind.startswith(FAKE_SCHEME):
            self._listener = FakeListener(bind)
        else:
            max_bytes = max(largest, MAX_CONTROL_BYTES) + HEADER_BYTES
            self._welcome = Welcome() if curve is not None else None
            self._listener = ZmqListener(bind, advertise_host, max_bytes, curve, self._welcome)
        self._around = Surroundings(
            [open_blocks(region) for region in regions],
            tuple(transports),
            max(_MIN_WINDOW_BLOCKS, window_bytes // largest),
            clock,
            self._fences,
            self._answer,
            self._emit,
            self._committed,
            self._drop,
        )
        # Memory may outlive its receiver (the vault): a sender must not go on writing then.
        is_direct = not DIRECT.isdisjoint(transports)
        self._liveness = LockedFile("alive") if is_direct else None
        self._doorbell = DoorbellListener(self._liveness.name) if self._liveness is not None else None
        self.peer = Peer(
            worker_id,
            incarnation,
            host_id(),
            self._listener.endpoint,
            tuple(transports),
            tuple(region.facts for region in regions),
            liveness=self._liveness.name if self._liveness is not None else "",
            has_doorbell=self._doorbell is not None,
            curve_public_key=curve.public if curve else "",
        )
        self._loop = IoLoop(f"kv-receiver-{worker_id}", self._tick, self._busy)
        self._loop.start()
        for listener in self._listeners:
            self._loop.call(partial(listener.start, self._loop, self._on_frame))

    @property
    def drops(self) -> dict[str, int]:
        """Frames ignored since the start, by why (`inbound.Drop`)."""
        return dict(self._drops)

    def welcome(self, public_keys: Iterable[str]) -> None:
        """Let senders with these CURVE keys connect; renew it within `curve.WELCOME_S` seconds."""
        if self._welcome is not None:
            self._welcome.name(public_keys)

    def expect(
        self, transfer_id: str, epoch: int, block_ids: Sequence[Sequence[int]], lease_s: float
    ) -> None:
        """Let a sender fill reserved blocks; in force before any frame that is sent later.

        A higher epoch supersedes a lower one: what the old sender still sends is dropped, and
        the new one may write only when the old one cannot any more.

        Args:
            transfer_id: 1 to 64 bytes of UTF-8.
            epoch: the attempt, 1 to 2^32 - 1; a lower or equal one than before changes nothing
                and is logged.
            block_ids: reserved blocks in order of position, one list a region.
            lease_s: the attempt lapses this long after the last sign of life, seconds.
        Raises:
            InvalidTransferError: an argument is out of range.
            ClosedError: the receiver was closed.
        """
        encode_id("transfer_id", transfer_id, MAX_TRANSFER_ID_BYTES)
        check_reservation(epoch, block_ids, lease_s, [region.num_blocks for region in self._regions])
        frozen = tuple(tuple(ids) for ids in block_ids)
        if not self._loop.post(partial(self._expect, transfer_id, epoch, frozen, lease_s)):
            raise ClosedError("the receiver was closed")

    def release(self, transfer_id: str) -> Future[None]:
        """Stop a transfer, in any state; idempotent.

        Returns:
            Done when no peer can write into the blocks any more: at once for transports that
            send frames; else when the sender answered, its lease ran out, or it died.
            Raises ClosedError if the receiver is closed before that.
        """
        future: Future[None] = Future()
        future.set_running_or_notify_cancel()
        if not self._loop.post(partial(self._release, transfer_id, future)):
            future.set_exception(ClosedError("the receiver was closed"))
        return future

    def close(self) -> None:
        """Stop every transfer and end the thread; idempotent. The memory is the caller's to free."""

        def stop_all() -> None:
            for inbound in self._inbound.values():
                inbound.stop()
            self._inbound.clear()
            for future in self._releases:
                future.set_exception(ClosedError("the receiver was closed"))
            self._releases.clear()
            for listener in self._listeners:
                listener.close()
            for store in self._around.blocks:
                store.close()
            self._around.blocks.clear()
            if self._liveness is not None:
                self._liveness.close()

        if self._loop.post(stop_all):
            self._loop.stop()

    @property
    def _listeners(self) -> tuple[Listener, ...]:
        return (self._listener,) if self._doorbell is None else (self._doorbell, self._listener)

    # What follows runs on the loop.

    def _expect(
        self, transfer_id: str, epoch: int, block_ids: tuple[tuple[int, ...], ...], lease_s: float
    ) -> None:
        old = self._inbound.get(transfer_id)
        if old is not None and epoch <= old.epoch:
            logger.error("transfer %s: epoch %d expected after epoch %d", transfer_id, epoch, old.epoch)
            return
        if old is not None:
            old.stop()
        self._inbound[transfer_id] = InboundTransfer(
            self._around, self._incarnation, transfer_id, epoch, block_ids, lease_s
        )

    def _release(self, transfer_id: str, future: Future[None]) -> None:
        inbound = self._inbound.pop(transfer_id, None)
        if inbound is not None:
            inbound.stop()
        self._releases.add(future)
        self._fences.when_clear(transfer_id, partial(self._finish_release, future))

    def _finish_release(self, future: Future[None]) -> None:
        # A fence that falls after close() finds its future failed already.
        if future in self._releases:
            self._releases.remove(future)
            future.set_result(None)

    def _on_frame(self, route: Route, raw: Payload, payload: Payload) -> None:
        try:
            header = decode(raw, payload)
            self._handle(route, header, payload)
        except MalformedFrameError as error:
            self._drop(Drop.MALFORMED, str(error))
        except CorruptFrameError as error:
            self._drop(Drop.CORRUPT, str(error))
            header, _ = parse(raw)
            inbound = self._inbound.get(header.transfer_id)
            if inbound is not None and header.kind is Kind.BLOCK and header.epoch == inbound.epoch:
                inbound.count_corrupt(route)

    def _handle(self, route: Route, header: Header, payload: Payload) -> None:
        inbound = self._inbound.get(header.transfer_id)
        name = f"{header.kind.name} of {header.transfer_id!r}, epoch {header.epoch}"
        if header.kind is Kind.STOPPED:
            self._fences.stopped(header.transfer_id, header.epoch, route)
        elif header.incarnation != self._incarnation:
            self._drop(Drop.WRONG_INCARNATION, name)
            message = f"this is incarnation {self._incarnation!r}"
            self._refuse(route, header, RejectReason.WRONG_INCARNATION, message)
        elif inbound is None or header.epoch > inbound.epoch:
            self._drop(Drop.UNKNOWN_TRANSFER, name)
            self._refuse(route, header, RejectReason.UNKNOWN_TRANSFER, "not expected, or released")
        elif header.epoch < inbound.epoch:
            self._drop(Drop.STALE_EPOCH, name)
            self._refuse(route, header, RejectReason.STALE_EPOCH, f"epoch {inbound.epoch} superseded it")
        else:
            inbound.handle(route, header, payload)

    def _refuse(self, route: Route, header: Header, reason: RejectReason, message: str) -> None:
        if header.kind in ANSWERED:
            # Names the incarnation that the sender believes in, or it would not listen.
            answer = Header(Kind.REJECT, header.transfer_id, header.epoch, header.incarnation)
            self._answer(route, answer, encode_reason(reason, message))

    def _answer(self, route: Route, header: Header, payload: bytes) -> None:
        listener: Listener = self._listener
        if self._doorbell is not None and self._doorbell.knows(route):
            listener = self._doorbell
        listener.send(route, encode(header, payload), payload)

    def _send_stop(self, fence: Fence) -> None:
        header = Header(Kind.STOP, fence.transfer_id, fence.epoch, self._incarnation)
        self._answer(fence.route, header, b"")

    def _emit(self, event: ReceiverEvent) -> None:
        try:
            self._on_event(event)
        except Exception:
            logger.exception("on_event failed on %s", event)

    def _committed(self, event: Committed) -> None:
        try:
            self._on_committed(event)
        except Exception:
            logger.exception("on_committed failed on %s", event)

    def _drop(self, reason: Drop, detail: str) -> None:
        if not self._drops[reason]:
            logger.warning("dropped a frame (%s; logged once): %s", reason, detail)
        self._drops[reason] += 1

    def _busy(self) -> bool:
        return bool(self._fences) or any(inbound.live for inbound in self._inbound.values())

    def _tick(self) -> None:
        now = self._clock()
        for inbound in list(self._inbound.values()):
            inbound.tick(now)
        self._fences.tick(now)
