"""The sending end: links to receivers, and transfers over them.

The life of a transfer: `connect` once a receiver, `begin`, `push` while prefill computes,
`commit`, wait for `done`. Threads: the loop (sockets, leases, state) and, for transports
that write directly, the copiers.
"""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Callable, Sequence

import zmq

from kvtransfer.block_store import open_blocks
from kvtransfer.copier import Copier
from kvtransfer.curve import CurveKeys
from kvtransfer.doorbell import DoorbellLink, ring_at
from kvtransfer.errors import (
    ClosedError,
    CudaError,
    InvalidTransferError,
    ReceiverGoneError,
    SharedMemoryError,
    TransportUnavailableError,
)
from kvtransfer.fake import FakeLink
from kvtransfer.frames import MAX_INCARNATION_BYTES, MAX_TRANSFER_ID_BYTES, encode_id
from kvtransfer.host import host_id
from kvtransfer.io_loop import IoLoop
from kvtransfer.links import DirectWriter, Link
from kvtransfer.locked_file import LockedFile, OwnerWatch
from kvtransfer.outbound import OutboundTransfer
from kvtransfer.peer import Peer
from kvtransfer.peer_link import PeerLink
from kvtransfer.region import Region, check_same_layout
from kvtransfer.reservation import check_reservation
from kvtransfer.select import CUDA_IPC, FAKE, SHARED_MEMORY, select_transports
from kvtransfer.shared_memory import SharedMemoryWriter
from kvtransfer.zmq_tcp import ZmqLink

_CLOSE_LINGER_MS = 200
_LinkKey = tuple[str, str]

logger = logging.getLogger(__name__)


class Sender:
    """Sends blocks of this worker's regions to receivers. Methods may be called from any thread."""

    def __init__(
        self,
        worker_id: str,
        incarnation: str,
        regions: Sequence[Region],
        *,
        transports: Sequence[str],
        allow_fallback: bool,
        clock: Callable[[], float] = time.monotonic,
        curve: CurveKeys | None = None,
    ) -> None:
        """Start the threads.

        Args:
            worker_id: stable name of this worker.
            incarnation: of this worker.
            regions: one a cache group, in the same order on every worker.
            transports: best first.
            allow_fallback: use the next transport if one fits but cannot be opened.
            clock: seconds, monotonic; for tests.
            curve: this worker's keys: receivers must have one too; None: none may.
        """
        self._regions = tuple(regions)
        self._sources = [open_blocks(region) for region in regions]
        self._me = Peer(
            worker_id, incarnation, host_id(), "", tuple(transports), tuple(r.facts for r in regions)
        )
        self._allow_fallback = allow_fallback
        self._clock = clock
        self._curve = curve
        self._links: dict[_LinkKey, PeerLink] = {}
        self._context = zmq.Context()
        self._copier = Copier(f"kv-copier-{worker_id}")
        self._liveness: LockedFile | None = None
        self._closed = False
        self._connecting = threading.Lock()
        self._loop = IoLoop(f"kv-sender-{worker_id}", self._tick, self._busy)
        self._loop.start()

    def connect(self, peer: Peer) -> str:
        """Open the link to a receiver, or reuse it.

        Forgets older incarnations of the same worker. Does not wait for the receiver.

        Returns:
            The transport's name.
        Raises:
            FingerprintMismatchError: the receiver's blocks have another layout.
            TransportUnavailableError: no transport fits, or it cannot be opened and
                falling back is not allowed or did not help.
            ClosedError: the sender was closed.
        """
        return self._link(peer).transport

    def refused(self, peer: Peer) -> tuple[str, ...]:
        """Better transports to a receiver that did not open, each with why; empty: no fallback is used.

        Raises:
            What `connect` raises.
        """
        return self._link(peer).refused

    def shares_pool_with(self, peer: Peer) -> bool:
        """Whether blocks travel to a receiver in place: both have the same memory, and it is open.

        Raises:
            What `connect` raises.
        """
        mine = self._me.regions
        same = peer.host_id == self._me.host_id and len(mine) == len(peer.regions)
        if not same or not all(a.is_same_memory(b) for a, b in zip(mine, peer.regions, strict=True)):
            return False
        return self._link(peer).writer is not None

    def forget(self, worker_id: str, incarnation: str) -> None:
        """Close the link to a receiver that is gone; its transfers end. Idempotent."""
        gone = ReceiverGoneError(f"worker {worker_id!r} was forgotten")
        self._loop.post(lambda: self._close_link((worker_id, incarnation), gone, _CLOSE_LINGER_MS))

    def begin(
        self,
        peer: Peer,
        transfer_id: str,
        epoch: int,
        block_ids: Sequence[Sequence[int]],
        lease_s: float,
        *,
        in_place: bool = False,
    ) -> OutboundTransfer:
        """Start a transfer: asks the receiver for leave to write and keeps its lease from now on.

        Args:
            peer: the receiver.
            transfer_id: 1 to 64 bytes of UTF-8.
            epoch: the attempt, 1 to 2^32 - 1.
            block_ids: the receiver's reserved blocks in order of position, one list a region.
            lease_s: what the receiver granted, seconds.
            in_place: the caller will compute into the receiver's blocks; see `OutboundTransfer`.
        Raises:
            InvalidTransferError: an argument is out of range. `done` raises it if that transfer
                id and epoch is under way already.
            What `connect` raises.
        """
        encode_id("transfer_id", transfer_id, MAX_TRANSFER_ID_BYTES)
        check_reservation(epoch, block_ids, lease_s, [region.num_blocks for region in peer.regions])
        link = self._link(peer)
        transfer = OutboundTransfer(link, transfer_id, epoch, block_ids, lease_s, in_place=in_place)
        if not self._loop.post(lambda: link.add(transfer)):
            raise ClosedError("the sender was closed")
        return transfer

    def close(self) -> None:
        """Fail what is under way, tell the receivers, and end the threads; idempotent."""
        if self._closed:
            return
        self._closed = True
        closed = ClosedError("the sender was closed")

        def close_links() -> None:
            for key in list(self._links):
                self._close_link(key, closed, _CLOSE_LINGER_MS)

        with self._connecting:
            self._loop.call(close_links)
        self._loop.stop()
        self._copier.close()
        self._context.term()
        if self._liveness is not None:
            self._liveness.close()
        for store in self._sources:
            store.close()

    def _link(self, peer: Peer) -> PeerLink:
        key = (peer.worker_id, peer.incarnation)
        link = self._links.get(key)
        if link is not None:
            return link
        with self._connecting:
            link = self._links.get(key)
            return link if link is not None else self._open(peer)

    def _open(self, peer: Peer) -> PeerLink:
        if self._closed:
            raise ClosedError("the sender was closed")
        encode_id("incarnation", peer.incarnation, MAX_INCARNATION_BYTES)
        if bool(peer.curve_public_key) != (self._curve is not None):
            whose = "this worker" if self._curve is not None else f"worker {peer.worker_id!r}"
            raise TransportUnavailableError(
                f"no transport to worker {peer.worker_id!r}: {whose} demands CURVE and the other has none"
            )
        check_same_layout(list(self._me.regions), list(peer.regions), peer.worker_id)
        fitting = select_transports(self._me, peer)
        failures: list[str] = []
        for name in fitting if self._allow_fallback else fitting[:1]:
            try:
                return self._open_with(name, peer, tuple(failures))
            except (CudaError, SharedMemoryError, InvalidTransferError) as error:
                logger.warning("transport %s to worker %s does not open: %s", name, peer.worker_id, error)
                failures.append(f"{name}: {error}")
        raise TransportUnavailableError(
            f"no transport to worker {peer.worker_id!r} opens: {'; '.join(failures)}"
        )

    def _open_with(self, name: str, peer: Peer, refused: tuple[str, ...]) -> PeerLink:
        writer: DirectWriter | None = None
        doorbell: socket.socket | None = None
        liveness_name = ""
        if name == CUDA_IPC:
            writer = self._open_cuda(peer)
        elif name == SHARED_MEMORY:
            writer = SharedMemoryWriter(self._regions, peer.regions)
        if writer is not None:
            if peer.has_doorbell:
                try:
                    doorbell = ring_at(peer.liveness)
                except SharedMemoryError:
                    writer.close()
                    raise
            if self._liveness is None:
                self._liveness = LockedFile("alive")
            liveness_name = self._liveness.name
        watched = writer is not None and peer.liveness
        link = PeerLink(
            peer,
            name,
            self._loop,
            self._clock,
            self._copier,
            self._sources,
            writer,
            liveness_name,
            OwnerWatch(peer.liveness) if watched else None,
            refused,
        )
        self._loop.call(lambda: self._attach_wire(link, doorbell))
        return link

    def _open_cuda(self, peer: Peer) -> DirectWriter:
        # Imported here because a process without GPU memory must not need CuPy.
        from kvtransfer.cuda_ipc import CudaIpcWriter

        if peer.host_id != self._me.host_id:
            raise CudaError(
                f"the receiver is on host {peer.host_id!r}, this is {self._me.host_id!r} "
                "(containers of one host must share /dev/shm: docker --ipc)"
            )
        return CudaIpcWriter(self._regions, peer.regions)

    # What follows runs on the loop.

    def _attach_wire(self, link: PeerLink, doorbell: socket.socket | None) -> None:
        peer = link.peer
        key = (peer.worker_id, peer.incarnation)
        for other in [k for k in self._links if k[0] == peer.worker_id]:
            self._close_link(other, ReceiverGoneError(f"worker {peer.worker_id!r} was reborn"), 0)

        def on_lost() -> None:
            if self._links.get(key) is link:
                gone = ReceiverGoneError(f"the connection to {peer.endpoint} broke")
                self._close_link(key, gone, 0)

        wire: Link
        if doorbell is not None:
            wire = DoorbellLink(self._loop, doorbell, link.on_frame, on_lost)
        elif link.transport == FAKE:
            wire = FakeLink(self._loop, peer.endpoint, link.on_frame, on_lost)
        else:
            wire = ZmqLink(
                self._loop,
                self._context,
                peer.endpoint,
                link.on_frame,
                on_lost,
                self._curve,
                peer.curve_public_key,
            )
        link.attach(wire)
        self._links[key] = link

    def _close_link(self, key: _LinkKey, error: ReceiverGoneError | ClosedError, linger_ms: int) -> None:
        link = self._links.pop(key, None)
        if link is not None:
            link.close(error, "SENDER_CLOSED", linger_ms)

    def _busy(self) -> bool:
        return any(link.busy for link in self._links.values())

    def _tick(self) -> None:
        now = self._clock()
        for link in list(self._links.values()):
            link.tick(now)
