"""One transfer, as its sender sees it: OPEN -> GRANT -> blocks -> COMMIT -> ACK."""

from __future__ import annotations

import enum
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from kvtransfer.copier import WriteGate
from kvtransfer.direct_writes import DirectWrites
from kvtransfer.errors import (
    AbortedError,
    InvalidTransferError,
    KvTransferError,
    LeaseExpiredError,
    ReceiverGoneError,
    RejectedError,
    StoppedError,
    TransferError,
)
from kvtransfer.frames import MAX_CONTROL_BYTES, Header, Kind, Payload
from kvtransfer.lease import SenderLease
from kvtransfer.payloads import OpenFacts, decode_reason, encode_reason, taken_after_s
from kvtransfer.pushes import Pushes
from kvtransfer.runs import PushedRun
from kvtransfer.settlement import Settlement
from kvtransfer.transfer_stats import TransferStats

if TYPE_CHECKING:
    from kvtransfer.peer_link import PeerLink


class _State(enum.Enum):
    OPENING = enum.auto()
    OPEN = enum.auto()
    COMMITTING = enum.auto()
    ABORTING = enum.auto()
    DONE = enum.auto()


class OutboundTransfer:
    """Pushes blocks, then commits or fails.

    `push`, `commit` and `fail` may be called from any thread, one at a time, and return at
    once. The rest runs in turns of the sender's loop; where the wire allows it, in one of the thread that
    has the news: COMMIT leaves from that of the last copy, or of `commit` if there is nothing to copy.

    A caller that has the receiver's pool too may compute `in_place`, straight into the receiver's
    blocks, from `opened` on and while `writable`. It says `settle` when it does so no more; until
    then the receiver is not told that the transfer is over.

    Attributes:
        transfer_id: minted by the gateway.
        epoch: the attempt.
        done: `TransferStats` after the receiver's ACK, or a `TransferError` (or `ClosedError`);
            only then may the pushed source blocks change.
        opened: done when the receiver granted writing; raises what `done` does if it never did.
        when_settled: calls back once nothing is computed in place any more; in turns of the loop only.
    """

    def __init__(
        self,
        link: PeerLink,
        transfer_id: str,
        epoch: int,
        block_ids: Sequence[Sequence[int]],
        lease_s: float,
        *,
        in_place: bool = False,
    ) -> None:
        self.transfer_id = transfer_id
        self.epoch = epoch
        self.done: Future[TransferStats] = Future()
        self.done.set_running_or_notify_cancel()  # it cannot be cancelled, only failed
        self.opened: Future[None] = Future()
        self.opened.set_running_or_notify_cancel()
        self._in_place = in_place
        self._settlement = Settlement(in_place)
        self.when_settled = self._settlement.when_settled
        self._link = link
        self._block_ids = tuple(tuple(ids) for ids in block_ids)
        self._lease = SenderLease(lease_s, link.clock())
        self._pushes = Pushes(self._block_ids, link.sources)
        self._closing = False
        self._state = _State.OPENING
        self._gate: WriteGate | None = None
        self._writes: DirectWrites | None = None
        if link.writer is not None:
            self._gate = WriteGate(link.writer, link.clock, link.receiver_lives)
            self._writes = DirectWrites(
                self._gate,
                link.copier,
                self._block_ids,
                placed=lambda run, num_bytes: link.run(partial(self._placed, run, num_bytes)),
                come_too_late=lambda: link.loop.post(self._come_too_late),
                failed=self._unreadable,
            )
        self._queue: deque[PushedRun] = deque()
        self._num_sent = 0
        self._num_bytes = 0
        self._limit = 0
        self._payload: bytes | None = None
        self._failure = b""
        self._commit_called_ns = 0
        self._room_since = link.clock()

    @property
    def transport(self) -> str:
        """Name of the transport that it uses."""
        return self._link.transport

    def push(
        self,
        group: int,
        first_index: int,
        src_block_ids: Sequence[int],
        ready: Callable[[], object] | None = None,
        part: range | None = None,
    ) -> None:
        """Send blocks; positions may come in any order, each at most once, or in parts from front to back.

        Args:
            group: index of the region.
            first_index: position of the first block in the transfer's block ids.
            src_block_ids: blocks of the sender's region; must not change until `done`.
            ready: returns once the blocks are computed; called on a copy thread, perhaps twice at
                a time, so it must let go of the GIL and must return in the end (a CUDA event's
                synchronize does; made with blocking sync it does not spin). What it raises fails
                the transfer. None: they are computed already.
            part: which bytes of each block, where others are not computed yet; None: all.
        Raises:
            InvalidTransferError: out of range, already pushed, or after commit() or fail().
        """
        if self._closing:
            raise InvalidTransferError("push", "the transfer was committed or failed already")
        self._pushes.add(group, first_index, src_block_ids, part)
        if not src_block_ids:
            return
        if self._writes is None and part is not None:
            if part.stop < self._link.sources[group].block_bytes:
                return  # frames carry whole blocks
            part = None
        run = PushedRun(group, first_index, tuple(src_block_ids), ready, part)
        if self._writes is not None and self.writable():
            # Spares it ways: nothing is to be copied, or the copy threads can begin at once.
            targets = self._block_ids[group][first_index : first_index + run.num_blocks]
            if self._in_place and run.ready is None and targets == run.source_block_ids:
                self._link.run(partial(self._placed, run, 0))
            else:
                self._writes.submit(run)
        else:
            self._link.loop.post(partial(self._enqueue, run))

    def commit(self, payload: bytes) -> None:
        """Announce that all is pushed; `done` tells when the receiver has it.

        Args:
            payload: handed to the receiver's `Committed`; at most 1 MiB.
        Raises:
            InvalidTransferError: too large, parts are missing, or after commit() or fail().
        """
        if self._closing:
            raise InvalidTransferError("commit", "the transfer was committed or failed already")
        if self._pushes.has_unfinished:
            raise InvalidTransferError("commit", "of some blocks only a part was pushed")
        if len(payload) > MAX_CONTROL_BYTES:
            raise InvalidTransferError("payload", f"{len(payload)} bytes, at most {MAX_CONTROL_BYTES}")
        self._closing = True
        self._commit_called_ns = time.monotonic_ns()
        self._link.run(partial(self._begin_commit, bytes(payload)))

    def fail(self, reason: str, message: str) -> None:
        """Give up and tell the receiver; `done` then raises `AbortedError`. Idempotent."""
        self._closing = True
        self._link.loop.post(partial(self._begin_abort, reason, message))

    def writable(self) -> bool:
        """Whether the receiver's blocks may be written now; from any thread."""
        return self._gate is not None and self._gate.is_open

    def settle(self) -> None:
        """Say that nothing is computed in place any more; from any thread. Idempotent."""
        self._link.run(self._settlement.settle)

    # What follows runs in turns of the sender's loop.

    def start(self) -> None:
        """Ask the receiver to let this transfer write."""
        self._renew(self._link.clock())

    def handle(self, header: Header, payload: Payload) -> None:
        """Take the receiver's answer."""
        if self._state is _State.DONE:
            return
        if header.kind in (Kind.GRANT, Kind.WAIT):
            self._lease.answered(header.sequence)
            if header.kind is Kind.GRANT:
                self._grant(header.count)
        elif header.kind is Kind.STOP:
            self.end(
                StoppedError(f"transfer {self.transfer_id!r}, epoch {self.epoch}: stopped by the receiver")
            )
        elif header.kind is Kind.REJECT:
            reason, message = decode_reason(payload)
            self.end(RejectedError(reason, message))
        elif header.kind is Kind.ACK and self._state is _State.COMMITTING:
            self._finish(payload)
        elif header.kind is Kind.ACK and self._state is _State.ABORTING:
            self.end(AbortedError("fail() was called"))

    def tick(self, now: float) -> None:
        """Renew the lease, or notice that it is gone."""
        if self._state is _State.DONE:
            return
        if now >= self._lease.deadline:
            self._expire()
        elif self._queue and self._state is _State.OPEN and now - self._room_since >= self._lease.duration_s:
            self._give_up(LeaseExpiredError(f"the receiver granted no room for {self._lease.duration_s:g} s"))
        elif self._lease.is_due(now):
            self._renew(now)

    def end(self, error: KvTransferError) -> None:
        """End without ACK: nothing is written any more once this returns."""
        if self._state is _State.DONE:
            return
        self._close_gate()
        if self._state is _State.ABORTING and isinstance(error, TransferError):
            error = AbortedError(f"fail() was called; then: {error}")
        self._state = _State.DONE
        self.when_settled(lambda: self._link.remove(self))
        if not self.opened.done():
            self.opened.set_exception(error)
        self.done.set_exception(error)

    def tell_failed(self, reason: str, message: str) -> None:
        """Stop writing, then tell the receiver."""
        self._close_gate()
        self.when_settled(lambda: self._send(Kind.FAIL, encode_reason(reason, message)))

    def _close_gate(self) -> None:
        self._queue.clear()
        if self._gate is not None:
            self._gate.close()

    def _enqueue(self, run: PushedRun) -> None:
        if self._state in (_State.OPENING, _State.OPEN):
            if self._gate is None and run.ready is not None:
                self._link.copier.submit(partial(self._await_ready, run))
            else:
                self._admit(run)

    def _await_ready(self, run: PushedRun) -> None:
        """Wait for a run that will travel as frames; on a copy thread."""
        assert run.ready is not None
        try:
            run.ready()
        except Exception as error:
            self._unreadable(error)
        else:
            self._link.loop.post(partial(self._admit, replace(run, ready=None)))

    def _admit(self, run: PushedRun) -> None:
        if self._state in (_State.OPENING, _State.OPEN):
            if not self._queue:
                self._room_since = self._link.clock()
            self._queue.append(run)
            self._pump()

    def _begin_commit(self, payload: bytes) -> None:
        self._payload = payload
        self._pump()

    def _begin_abort(self, reason: str, message: str) -> None:
        if self._state in (_State.ABORTING, _State.DONE):
            return
        self._state = _State.ABORTING
        self._close_gate()
        self._failure = encode_reason(reason, message)
        self.when_settled(lambda: self._send(Kind.FAIL, self._failure))

    def _grant(self, limit: int) -> None:
        if limit > self._limit:
            self._limit = limit
            self._room_since = self._link.clock()
        if self._state is _State.OPENING:
            self._state = _State.OPEN
        if self._gate is not None:
            self._gate.deadline = self._lease.deadline
        if not self.opened.done():
            self.opened.set_result(None)
        self._pump()

    def _pump(self) -> None:
        """Send what may be sent; commit when all is."""
        if self._state is not _State.OPEN:
            return
        if self._writes is not None:
            while self._queue:
                self._writes.submit(self._queue.popleft())
        else:
            try:
                self._send_blocks()
            except Exception as error:
                self._unreadable(error)
                return
        if self._payload is not None and self._num_sent == self._pushes.num_blocks:
            self._state = _State.COMMITTING
            self._send_commit(0)

    def _send_blocks(self) -> None:
        while self._queue and self._num_sent < self._limit:
            run = self._queue.popleft()
            room = self._limit - self._num_sent
            for offset, block_id in enumerate(run.source_block_ids[:room]):
                block = self._link.sources[run.group].read(block_id)
                self._send(Kind.BLOCK, block, run.group, run.first_index + offset, 1)
                self._num_bytes += len(block)
            sent = min(room, run.num_blocks)
            self._num_sent += sent
            if sent < run.num_blocks:
                self._queue.appendleft(run.between(sent, run.num_blocks))

    def _unreadable(self, error: Exception) -> None:
        """Give up, since a block cannot be read or written; on any thread."""
        failure = TransferError(f"a block could not be read or written: {error!r}")
        self._link.loop.post(partial(self._give_up, failure))

    def _come_too_late(self) -> None:
        if self._state is _State.OPEN:
            self._expire()

    def _placed(self, run: PushedRun, num_bytes: int) -> None:
        if self._state is not _State.OPEN:
            return
        self._num_bytes += num_bytes
        for first_index, num_blocks in self._pushes.wrote(run):
            self._num_sent += num_blocks
            self._send(Kind.PLACED, b"", run.group, first_index, num_blocks)
        self._pump()

    def _renew(self, now: float) -> None:
        sequence = self._lease.renew(now)
        if self._state is _State.OPENING:
            facts = OpenFacts(
                round(self._lease.duration_s * 1000), self._link.transport, self._link.liveness_name
            )
            self._send(Kind.OPEN, facts.encode(), sequence=sequence)
        elif self._state is _State.COMMITTING:
            self._send_commit(sequence)
        elif self._state is _State.ABORTING and not self._settlement.is_open:
            self._send(Kind.FAIL, self._failure, sequence=sequence)
        else:
            self._send(Kind.RENEW, sequence=sequence)

    def _send_commit(self, sequence: int) -> None:
        self._send(Kind.COMMIT, self._payload or b"", count=self._num_sent, sequence=sequence)

    def _finish(self, ack: Payload) -> None:
        self._state = _State.DONE
        self._link.remove(self)
        exposed_s = taken_after_s(ack, self._commit_called_ns, time.monotonic_ns())
        self.done.set_result(TransferStats(self._link.transport, self._num_sent, self._num_bytes, exposed_s))

    def _expire(self) -> None:
        where = self._link.peer.endpoint
        if self._state is _State.OPENING:
            self._give_up(ReceiverGoneError(f"{where} does not answer"))
        else:
            self._give_up(LeaseExpiredError(f"no answer from {where} for most of a lease"))

    def _give_up(self, error: TransferError) -> None:
        if self._state is not _State.DONE:
            self.tell_failed("SENDER_GAVE_UP", str(error))
            self.end(error)

    def _send(
        self,
        kind: Kind,
        payload: Payload = b"",
        group: int = 0,
        first_index: int = 0,
        count: int = 0,
        sequence: int = 0,
    ) -> None:
        incarnation = self._link.peer.incarnation
        header = Header(kind, self.transfer_id, self.epoch, incarnation, group, first_index, count, sequence)
        self._link.send(header, payload)
