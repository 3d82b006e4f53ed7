"""One attempt at a transfer, as its receiver sees it."""

from __future__ import annotations

import enum
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from kvtransfer.block_store import BlockStore
from kvtransfer.errors import MalformedFrameError
from kvtransfer.events import Arrived, Committed, Failed, LeaseExpired, ReceiverEvent
from kvtransfer.fences import Fence, Fences
from kvtransfer.frames import ANSWERED, Header, Kind, Payload
from kvtransfer.links import Route
from kvtransfer.locked_file import is_valid_name
from kvtransfer.payloads import OpenFacts, RejectReason, decode_reason, encode_reason, encode_taken_at
from kvtransfer.select import CUDA_IPC, DIRECT

# A GPU may finish the copies that a killed process had queued: two batches, milliseconds.
GPU_SETTLE_S = 0.25


class Drop(enum.StrEnum):
    """Why a frame was ignored."""

    MALFORMED = "malformed"
    CORRUPT = "corrupt"
    WRONG_INCARNATION = "wrong_incarnation"
    UNKNOWN_TRANSFER = "unknown_transfer"
    STALE_EPOCH = "stale_epoch"
    WRONG_SENDER = "wrong_sender"
    NOT_OPEN = "not_open"
    DUPLICATE = "duplicate"


class State(enum.Enum):
    """Where an attempt stands."""

    EXPECTED = enum.auto()
    OPEN = enum.auto()
    COMMITTED = enum.auto()
    FAILED = enum.auto()
    EXPIRED = enum.auto()


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What an attempt needs of its receiver.

    Attributes:
        blocks: the receiver's memory, one store a group.
        transports: those accepted.
        window_blocks: BLOCK frames that may be under way.
        clock: seconds, monotonic.
        fences: writers being fenced off.
        answer: sends a frame to a route.
        emit: raises an event.
        committed: tells of COMMIT before the event is raised.
        drop: counts an ignored frame.
    """

    blocks: list[BlockStore]
    transports: Sequence[str]
    window_blocks: int
    clock: Callable[[], float]
    fences: Fences
    answer: Callable[[Route, Header, bytes], None]
    emit: Callable[[ReceiverEvent], None]
    committed: Callable[[Committed], None]
    drop: Callable[[Drop, str], None]


class InboundTransfer:
    """Takes the frames of one (transfer id, epoch); used on the receiver's loop only."""

    def __init__(
        self,
        around: Surroundings,
        incarnation: str,
        transfer_id: str,
        epoch: int,
        block_ids: Sequence[Sequence[int]],
        lease_s: float,
    ) -> None:
        self.transfer_id = transfer_id
        self.epoch = epoch
        self.state = State.EXPECTED
        self._around = around
        self._incarnation = incarnation
        self._block_ids = block_ids
        self._lease_s = lease_s
        self._deadline = around.clock() + lease_s
        self._route: Route | None = None
        self._facts = OpenFacts(0, "")
        self._placed = [bytearray(len(ids)) for ids in block_ids]
        self._num_placed = 0
        self._num_bytes = 0
        self._num_corrupt = 0
        self._consumed = 0
        self._granted = 0

    @property
    def live(self) -> bool:
        """Whether the lease counts."""
        return self.state in (State.EXPECTED, State.OPEN)

    def handle(self, route: Route, header: Header, payload: Payload) -> None:
        """Take a frame of this attempt.

        Raises:
            MalformedFrameError: a field is out of range; nothing was changed.
        """
        if header.kind is Kind.OPEN and self._route is None:
            self._check_open(OpenFacts.decode(payload), route, header)
        elif route != self._route:
            if header.kind in ANSWERED:
                self.reject(route, RejectReason.BUSY, "another sender fills this transfer")
            self._around.drop(Drop.WRONG_SENDER, f"{header.kind.name} of {header.transfer_id!r}")
        elif not self.live:
            self._handle_late(header)
        else:
            self._deadline = self._around.clock() + self._lease_s
            self._handle_live(header, payload)

    def count_corrupt(self, route: Route) -> None:
        """Note that a BLOCK frame was lost to its checksum; its room is given back."""
        if route == self._route and self.state is State.OPEN:
            self._num_corrupt += 1
            self._consume()

    def tick(self, now: float) -> None:
        """Notice that the lease is out."""
        if self.live and now >= self._deadline:
            self.state = State.EXPIRED
            self._around.emit(LeaseExpired(self.transfer_id, self.epoch))

    def stop(self) -> None:
        """Let nothing of this attempt be placed any more; fences off who writes directly."""
        was_live, self.state = self.live, State.EXPIRED
        if self._route is None or not was_live:
            return
        now = self._around.clock()
        settle_s = GPU_SETTLE_S if self._facts.transport == CUDA_IPC else 0.0
        fence = Fence(
            self.transfer_id, self.epoch, self._route, self._facts.liveness, self._deadline, now, settle_s
        )
        if self._facts.transport in DIRECT and self._granted:
            self._around.fences.put_up(fence)
        else:
            self._answer(Kind.STOP)

    def reject(self, route: Route, reason: RejectReason, message: str) -> None:
        """Refuse a sender."""
        header = Header(Kind.REJECT, self.transfer_id, self.epoch, self._incarnation)
        self._around.answer(route, header, encode_reason(reason, message))

    def _handle_live(self, header: Header, payload: Payload) -> None:
        if header.kind is Kind.FAIL:
            self._fail(*decode_reason(payload))
            self._answer(Kind.ACK)
        elif self.state is State.EXPECTED:
            # Waits for its fences; only signs of life are expected.
            self._answer(Kind.WAIT, sequence=header.sequence)
        elif header.kind in (Kind.OPEN, Kind.RENEW):
            self._answer(Kind.GRANT, count=self._granted, sequence=header.sequence)
        elif header.kind is Kind.COMMIT:
            self._commit(header, payload)
        elif header.kind is (Kind.PLACED if self._facts.transport in DIRECT else Kind.BLOCK):
            self._place(header, payload)
        else:
            raise MalformedFrameError(f"{header.kind.name} does not belong to {self._facts.transport}")

    def _handle_late(self, header: Header) -> None:
        if header.kind is {State.COMMITTED: Kind.COMMIT, State.FAILED: Kind.FAIL}.get(self.state):
            self._answer(Kind.ACK)  # the first ACK was lost
            return
        self._around.drop(Drop.NOT_OPEN, f"{header.kind.name} of {header.transfer_id!r}")
        if header.kind in ANSWERED and self._route is not None:
            expired = self.state is State.EXPIRED
            reason = RejectReason.LEASE_EXPIRED if expired else RejectReason.FAILED
            self.reject(self._route, reason, f"the transfer is {self.state.name.lower()}")

    def _check_open(self, facts: OpenFacts, route: Route, header: Header) -> None:
        if self.state is State.EXPIRED:
            self.reject(route, RejectReason.LEASE_EXPIRED, "the lease ran out before OPEN came")
        elif facts.transport not in self._around.transports:
            self.reject(
                route, RejectReason.TRANSPORT_REFUSED, f"accepted are {list(self._around.transports)}"
            )
        elif facts.lease_ms > round(self._lease_s * 1000):
            self.reject(
                route, RejectReason.LEASE_MISMATCH, f"{facts.lease_ms} ms, granted were {self._lease_s:g} s"
            )
        else:
            if facts.transport in DIRECT:
                _check_liveness(facts.liveness)
            self._route, self._facts = route, facts
            self._deadline = self._around.clock() + self._lease_s
            if self._around.fences.stands(self.transfer_id):
                self._answer(Kind.WAIT, sequence=header.sequence)
            self._around.fences.when_clear(self.transfer_id, lambda: self._open(header.sequence))

    def _open(self, sequence: int) -> None:
        if self.state is State.EXPECTED:
            self.state = State.OPEN
            self._granted = self._around.window_blocks
            self._answer(Kind.GRANT, count=self._granted, sequence=sequence)

    def _place(self, header: Header, payload: Payload) -> None:
        group, first, count = header.group, header.first_index, header.count
        if group >= len(self._placed) or not 1 <= count <= len(self._placed[group]) - first:
            raise MalformedFrameError(f"blocks {first}+{count} of group {group} were never reserved")
        placed, block_bytes = self._placed[group], self._around.blocks[group].block_bytes
        if any(placed[first : first + count]):
            self._around.drop(Drop.DUPLICATE, f"blocks {first}+{count} of {self.transfer_id!r}")
        else:
            if header.kind is Kind.BLOCK:
                if count != 1 or len(payload) != block_bytes:
                    raise MalformedFrameError(
                        f"{count} blocks in {len(payload)} bytes, not 1 in {block_bytes}"
                    )
                self._around.blocks[group].write(self._block_ids[group][first], payload)
            placed[first : first + count] = b"\1" * count
            self._num_placed += count
            self._num_bytes += count * block_bytes
            self._around.emit(Arrived(self.transfer_id, count))
        if header.kind is Kind.BLOCK:
            self._consume()

    def _consume(self) -> None:
        self._consumed += 1
        limit = self._consumed + self._around.window_blocks
        if limit - self._granted >= max(1, self._around.window_blocks // 4):
            self._granted = limit
            self._answer(Kind.GRANT, count=limit)

    def _commit(self, header: Header, payload: Payload) -> None:
        if header.count != self._num_placed:
            message = (
                f"{header.count} blocks announced, {self._num_placed} arrived, {self._num_corrupt} corrupt"
            )
            self._fail(RejectReason.COUNT_MISMATCH, message)
            if self._route is not None:
                self.reject(self._route, RejectReason.COUNT_MISMATCH, message)
            return
        self.state = State.COMMITTED
        event = Committed(self.transfer_id, self.epoch, bytes(payload), self._num_placed, self._num_bytes)
        self._around.committed(event)
        is_same_host = self._facts.transport in DIRECT
        taken_at = encode_taken_at(time.monotonic_ns()) if is_same_host else b""
        self._around.emit(event)
        self._answer(Kind.ACK, taken_at)

    def _fail(self, reason: str, message: str) -> None:
        self.state = State.FAILED
        self._around.emit(Failed(self.transfer_id, self.epoch, reason, message))

    def _answer(self, kind: Kind, payload: bytes = b"", *, count: int = 0, sequence: int = 0) -> None:
        if self._route is not None:
            header = Header(
                kind, self.transfer_id, self.epoch, self._incarnation, count=count, sequence=sequence
            )
            self._around.answer(self._route, header, payload)


def _check_liveness(name: str) -> None:
    if not is_valid_name(name):
        raise MalformedFrameError("OPEN of a transport that writes directly names no liveness file")
