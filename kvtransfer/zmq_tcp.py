"""Frames over ZeroMQ: ROUTER at the receiver, one DEALER a link at the sender."""

from __future__ import annotations

import logging
from collections.abc import Callable

import zmq

from kvtransfer.curve import CurveKeys, Doorkeeper, HandshakeMonitor, Welcome, check_key, guard, unlock
from kvtransfer.errors import InvalidTransferError
from kvtransfer.frames import HEADER_BYTES, Payload
from kvtransfer.heap import keep_message_memory
from kvtransfer.io_loop import IoLoop
from kvtransfer.links import FrameFromReceiver, FrameFromSender, Route

_BATCH = 16  # messages read before the loop looks at its other work
_CLOSE_LINGER_MS = 200

logger = logging.getLogger(__name__)


class ZmqListener:
    """A `Listener` on a ROUTER socket.

    Attributes:
        endpoint: "tcp://host:port" as peers reach it.
    """

    def __init__(
        self,
        bind: str,
        advertise_host: str,
        max_message_bytes: int,
        keys: CurveKeys | None = None,
        welcome: Welcome | None = None,
    ) -> None:
        """Bind.

        Args:
            bind: "tcp://host:port"; port 0 takes a free one.
            advertise_host: host that peers are told; needed when all interfaces are bound.
            max_message_bytes: a peer that sends more is disconnected.
            keys: this side's, for CURVE; None: connections are open.
            welcome: with keys: whom to let in.
        Raises:
            InvalidTransferError: the address cannot be bound.
        """
        host, _, port = bind.removeprefix("tcp://").rpartition(":")
        if host in ("*", "0.0.0.0", "[::]") and not advertise_host:
            raise InvalidTransferError("bind", f"{bind} names no host that a peer could reach")
        keep_message_memory()
        self._loop: IoLoop | None = None
        self._context = zmq.Context()
        self._socket: zmq.Socket[bytes] = self._context.socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.LINGER, _CLOSE_LINGER_MS)
        self._socket.setsockopt(zmq.MAXMSGSIZE, max_message_bytes)
        self._socket.setsockopt(zmq.IPV6, 1 if "[" in host else 0)
        self._door: Doorkeeper | None = None
        self._monitor: HandshakeMonitor | None = None
        if keys is not None and welcome is not None:
            self._door = Doorkeeper(self._context, welcome)
            guard(self._socket, keys)
            self._monitor = HandshakeMonitor(self._socket, f"a sender at {bind}")
        try:
            self._socket.bind(f"tcp://{host}:{'*' if port == '0' else port}")
        except zmq.ZMQError as error:
            self._context.destroy(linger=0)
            raise InvalidTransferError("bind", f"{bind}: {error.strerror}") from error
        bound = self._socket.getsockopt_string(zmq.LAST_ENDPOINT)
        self.endpoint = f"tcp://{advertise_host or host}:{bound.rpartition(':')[2]}"

    def start(self, loop: IoLoop, on_frame: FrameFromSender) -> None:
        """Begin to take frames."""
        self._loop = loop
        loop.add_reader(self._socket, lambda: self._read(loop, on_frame))
        if self._door is not None and self._monitor is not None:
            loop.add_reader(self._door.socket, self._door.answer)
            loop.add_reader(self._monitor.socket, self._monitor.read)

    def _read(self, loop: IoLoop, on_frame: FrameFromSender) -> None:
        for _ in range(_BATCH):
            try:
                parts = self._socket.recv_multipart(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                return
            loop.run_posted()  # a frame's expect() was posted before the frame was sent
            if self._socket.closed:
                return
            route, header, payload = parts[0], parts[1] if len(parts) > 1 else None, parts[2:]
            # What is not header and one payload is handed on as an empty header, to be counted.
            well_formed = header is not None and len(payload) == 1
            if header is not None and well_formed:
                on_frame(route.bytes, header.buffer, payload[0].buffer)
            else:
                on_frame(route.bytes, b"", b"")

    def send(self, route: Route, header: bytes, payload: bytes = b"") -> None:
        """Send a frame to one sender; ZeroMQ drops it if that sender is gone."""
        try:
            self._socket.send_multipart([route, header, payload], zmq.NOBLOCK)
        except zmq.ZMQError as error:
            logger.warning("cannot answer a sender: %s", error.strerror)

    def close(self) -> None:
        """Stop."""
        if self._loop is not None:
            self._loop.remove_reader(self._socket)
        if self._door is not None and self._monitor is not None:
            if self._loop is not None:
                self._loop.remove_reader(self._door.socket)
                self._loop.remove_reader(self._monitor.socket)
            self._monitor.close()
            self._door.close()
        self._socket.close()
        self._context.term()


class ZmqLink:
    """A `Link` on a DEALER socket."""

    takes_turns = False

    def __init__(
        self,
        loop: IoLoop,
        context: zmq.Context[zmq.Socket[bytes]],
        endpoint: str,
        on_frame: FrameFromReceiver,
        on_lost: Callable[[], None],
        keys: CurveKeys | None = None,
        server_key: str = "",
    ) -> None:
        """Connect, in the background; on the loop.

        Args:
            loop: owns the socket.
            context: the sender's.
            endpoint: "tcp://host:port".
            on_frame: called with each answer.
            on_lost: called once if the connection breaks after it stood.
            keys: this side's, for CURVE; None: the connection is open.
            server_key: with keys: the receiver's public one.
        Raises:
            InvalidTransferError: the endpoint is not an address.
            InvalidPeerError: the receiver's key is malformed.
        """
        if keys is not None:
            check_key(server_key)
        self._loop = loop
        self._socket: zmq.Socket[bytes] = context.socket(zmq.DEALER)
        self._socket.setsockopt(zmq.SNDHWM, 0)  # credits are the limit
        self._socket.setsockopt(zmq.MAXMSGSIZE, 1 << 16)
        self._socket.setsockopt(zmq.IPV6, 1 if "[" in endpoint else 0)
        if keys is not None:
            unlock(self._socket, keys, server_key)
        self._monitor = HandshakeMonitor(self._socket, f"the receiver at {endpoint}", zmq.EVENT_DISCONNECTED)
        try:
            self._socket.connect(endpoint)
        except zmq.ZMQError as error:
            self._monitor.close()
            self._socket.close(0)
            raise InvalidTransferError("endpoint", f"{endpoint!r}: {error.strerror}") from error
        loop.add_reader(self._socket, lambda: self._read(on_frame))
        loop.add_reader(self._monitor.socket, lambda: self._read_monitor(on_lost))

    def _read(self, on_frame: FrameFromReceiver) -> None:
        for _ in range(_BATCH):
            if self._socket.closed:
                return
            try:
                parts = self._socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            if len(parts) == 2 and len(parts[0]) == HEADER_BYTES:
                on_frame(parts[0], parts[1])
            else:
                on_frame(b"", b"")

    def _read_monitor(self, on_lost: Callable[[], None]) -> None:
        # What the peer said before it went, a REJECT say, was queued before this.
        if self._monitor.read() == zmq.EVENT_DISCONNECTED:
            on_lost()

    def send(self, header: bytes, payload: Payload = b"") -> None:
        """Send a frame; the payload of a block is not copied. Without a connection it is dropped.

        A handshake that failed leaves a socket that waits for ever to send; that the link is
        lost, on_lost says.
        """
        try:
            self._socket.send(header, zmq.SNDMORE | zmq.NOBLOCK)
        except zmq.Again:
            return
        self._socket.send(payload, zmq.NOBLOCK, copy=False)

    def close(self, linger_ms: int) -> None:
        """Disconnect."""
        self._loop.remove_reader(self._socket)
        self._loop.remove_reader(self._monitor.socket)
        self._monitor.close()
        self._socket.close(linger_ms)
