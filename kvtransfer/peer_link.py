"""A sender's open connection to one incarnation of one receiver."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence

from kvtransfer.block_store import BlockStore
from kvtransfer.copier import Copier
from kvtransfer.errors import FrameError, InvalidTransferError, KvTransferError, ReceiverGoneError
from kvtransfer.frames import Header, Kind, Payload, decode, encode
from kvtransfer.io_loop import IoLoop
from kvtransfer.links import DirectWriter, Link
from kvtransfer.locked_file import OwnerWatch
from kvtransfer.outbound import OutboundTransfer
from kvtransfer.peer import Peer

logger = logging.getLogger(__name__)


class PeerLink:
    """Routes answers to transfers; all but the constructor and `run` runs in turns of the sender's loop.

    Attributes:
        peer: the receiver.
        transport: how blocks travel.
        loop, clock, copier: the sender's.
        sources: the sender's blocks, one store a group.
        writer: for a transport that writes directly; None: blocks travel as frames.
        liveness_name: of the sender's liveness file; empty if there is no writer.
        refused: better transports that did not open, each with why; empty: this is the best that fits.
        receiver: watches the receiver's process; None: it does not say how.
        drops: frames ignored, by why.
    """

    def __init__(
        self,
        peer: Peer,
        transport: str,
        loop: IoLoop,
        clock: Callable[[], float],
        copier: Copier,
        sources: Sequence[BlockStore],
        writer: DirectWriter | None,
        liveness_name: str,
        receiver: OwnerWatch | None,
        refused: tuple[str, ...] = (),
    ) -> None:
        self.peer = peer
        self.transport = transport
        self.loop = loop
        self.clock = clock
        self.copier = copier
        self.sources = sources
        self.writer = writer
        self.liveness_name = liveness_name
        self.refused = refused
        self._receiver = receiver
        self.drops: Counter[str] = Counter()
        self._wire: Link | None = None
        self._transfers: dict[tuple[str, int], OutboundTransfer] = {}

    @property
    def busy(self) -> bool:
        """Whether transfers are under way."""
        return bool(self._transfers)

    def receiver_lives(self) -> bool:
        """Whether the receiver's process lives, as far as that shows; from any thread."""
        return self._receiver is None or self._receiver.lives()

    def attach(self, wire: Link) -> None:
        """Use a link for frames."""
        self._wire = wire

    def run(self, command: Callable[[], object]) -> None:
        """Run what may send, in a turn of the loop: this thread's if the wire allows it; from any thread."""
        wire = self._wire
        if wire is not None and wire.takes_turns:
            self.loop.run(command)
        else:
            self.loop.post(command)

    def add(self, transfer: OutboundTransfer) -> None:
        """Start a transfer, or end it at once if that cannot be."""
        key = (transfer.transfer_id, transfer.epoch)
        if self._wire is None:
            transfer.end(ReceiverGoneError(f"the link to {self.peer.endpoint} was closed"))
        elif key in self._transfers:
            transfer.end(InvalidTransferError("transfer_id", f"{key[0]!r}, epoch {key[1]} is under way"))
        else:
            self._transfers[key] = transfer
            transfer.start()

    def remove(self, transfer: OutboundTransfer) -> None:
        """Forget a finished transfer."""
        key = (transfer.transfer_id, transfer.epoch)
        if self._transfers.get(key) is transfer:
            del self._transfers[key]

    def send(self, header: Header, payload: Payload = b"") -> None:
        """Send a frame, if the link stands."""
        if self._wire is not None:
            self._wire.send(encode(header, payload), payload)

    def on_frame(self, raw: Payload, payload: Payload) -> None:
        """Take a frame from the receiver; what is malformed or foreign is counted and dropped."""
        try:
            header = decode(raw, payload)
            if header.incarnation != self.peer.incarnation:
                self.drops["wrong_incarnation"] += 1
                return
            transfer = self._transfers.get((header.transfer_id, header.epoch))
            if transfer is not None:
                transfer.handle(header, payload)
        except FrameError as error:
            if not self.drops["malformed"]:
                logger.warning("dropped a frame from %s: %s", self.peer.endpoint, error)
            self.drops["malformed"] += 1
            return
        if header.kind is Kind.STOP:
            # Also for a transfer long gone: the receiver waits to hear that nothing writes.
            stopped = Header(Kind.STOPPED, header.transfer_id, header.epoch, header.incarnation)
            if transfer is None:
                self.send(stopped)
            else:
                transfer.when_settled(lambda: self.send(stopped))

    def tick(self, now: float) -> None:
        """Let transfers look at the time."""
        for transfer in list(self._transfers.values()):
            transfer.tick(now)

    def close(self, error: KvTransferError, reason: str, linger_ms: int) -> None:
        """End every transfer, tell the receiver if it is there, and disconnect."""
        for transfer in list(self._transfers.values()):
            transfer.tell_failed(reason, str(error))
            transfer.end(error)
        if self._wire is not None:
            self._wire.close(linger_ms)
            self._wire = None
        if self._receiver is not None:
            self._receiver.close()
        if self.writer is not None:
            self.copier.submit(self.writer.close)  # which may have to wait for a GPU
