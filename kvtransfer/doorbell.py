"""Doorbells between processes of one host: frames over a Unix socket.

For transports that write directly: what is left to say is small, and how soon it is heard is what counts.
ZeroMQ has a thread of its own on either side to be woken; here a frame goes from the thread that has news
to the loop that waits for it. The socket lies beside the receiver's liveness file, as long as that, and
only the receiver's own user can open it: whoever can could write into its shared memory as well.

On the stream each frame is its payload's size, a header, and the payload.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import socket
import struct
from collections.abc import Callable
from functools import partial

from kvtransfer.errors import SharedMemoryError
from kvtransfer.frames import HEADER_BYTES, MAX_CONTROL_BYTES, Payload
from kvtransfer.io_loop import IoLoop
from kvtransfer.links import FrameFromReceiver, FrameFromSender, Route
from kvtransfer.locked_file import doorbell_of

_SIZE = struct.Struct("<I")
_HEAD_BYTES = _SIZE.size + HEADER_BYTES
_READ_BYTES = 1 << 16
_BACKLOG = 128
_CONNECT_TIMEOUT_S = 1.0
_CLOSE_LINGER_MS = 200

logger = logging.getLogger(__name__)


class FrameStream:
    """Frames over a connected Unix socket; used on its loop, or by who has the loop's turn."""

    def __init__(
        self,
        loop: IoLoop,
        connected: socket.socket,
        on_frame: Callable[[Payload, Payload], None],
        on_lost: Callable[[], object],
    ) -> None:
        """Begin to read; on the loop.

        Args:
            on_frame: called on the loop with each frame.
            on_lost: called on the loop, once, when the other end is gone or sent what is no frame.
        """
        connected.setblocking(False)
        self._loop = loop
        self._socket = connected
        self._on_frame = on_frame
        self._on_lost = on_lost
        self._unread = bytearray()
        self._unsent = bytearray()
        self._closed = False
        loop.add_reader(connected, self._read)

    def send(self, header: bytes, payload: Payload = b"") -> None:
        """Send a frame; nothing where the other end is gone, which `on_lost` says."""
        if self._closed:
            return
        frame = b"".join((_SIZE.pack(len(payload)), header, payload))
        if self._unsent:
            self._unsent += frame
            return
        sent = self._send_some(frame)
        if sent < len(frame):
            self._unsent += frame[sent:]
            self._loop.post(self._await_room)

    def close(self, linger_ms: int) -> None:
        """Stop; what could not be sent yet gets so long. Idempotent."""
        if self._closed:
            return
        self._closed = True
        self._loop.remove_reader(self._socket)
        if self._unsent and linger_ms:
            self._socket.settimeout(linger_ms / 1000)
            with contextlib.suppress(OSError):
                self._socket.sendall(self._unsent)
        self._socket.close()

    def _read(self) -> None:
        try:
            data = self._socket.recv(_READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        self._unread += data
        while not self._closed and len(self._unread) >= _SIZE.size:
            (num_bytes,) = _SIZE.unpack_from(self._unread)
            if num_bytes > MAX_CONTROL_BYTES:
                logger.warning("a doorbell announced %d bytes, at most %d", num_bytes, MAX_CONTROL_BYTES)
                data = b""
                break
            end = _HEAD_BYTES + num_bytes
            if len(self._unread) < end:
                break
            header = bytes(self._unread[_SIZE.size : _HEAD_BYTES])
            payload = bytes(self._unread[_HEAD_BYTES:end])
            del self._unread[:end]
            self._on_frame(header, payload)
        if not data and not self._closed:
            self.close(0)
            self._on_lost()

    def _send_some(self, data: bytes | bytearray) -> int:
        try:
            return self._socket.send(data)
        except BlockingIOError:
            return 0
        except OSError:
            return len(data)  # the other end is gone, which the reader notices

    def _await_room(self) -> None:
        if self._unsent and not self._closed:
            self._loop.when_writable(self._socket, self._send_rest)

    def _send_rest(self) -> None:
        del self._unsent[: self._send_some(self._unsent)]
        self._await_room()


class DoorbellListener:
    """A `Listener` on a Unix socket.

    Attributes:
        endpoint: path of the socket.
    """

    def __init__(self, liveness: str) -> None:
        """Bind.

        Args:
            liveness: name of the receiver's liveness file.
        Raises:
            SharedMemoryError: the socket cannot be made.
        """
        self._path = doorbell_of(liveness)
        self.endpoint = str(self._path)
        self._loop: IoLoop | None = None
        self._streams: dict[Route, FrameStream] = {}
        self._numbers = itertools.count(1)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.setblocking(False)
        try:
            self._socket.bind(self.endpoint)
            os.chmod(self._path, 0o600)  # before anybody can connect
            self._socket.listen(_BACKLOG)
        except OSError as error:
            self._socket.close()
            raise SharedMemoryError(f"cannot listen on {self._path}: {error.strerror}") from error

    def start(self, loop: IoLoop, on_frame: FrameFromSender) -> None:
        """Begin to take frames."""
        self._loop = loop
        loop.add_reader(self._socket, lambda: self._accept(loop, on_frame))

    def knows(self, route: Route) -> bool:
        """Whether a sender came, or once came, by this listener."""
        return route.startswith(b"unix-")

    def send(self, route: Route, header: bytes, payload: bytes = b"") -> None:
        """Send a frame to one sender; dropped if that sender is gone."""
        stream = self._streams.get(route)
        if stream is not None:
            stream.send(header, payload)

    def close(self) -> None:
        """Stop, and remove the socket."""
        if self._loop is not None:
            self._loop.remove_reader(self._socket)
        streams, self._streams = self._streams, {}
        for stream in streams.values():
            stream.close(_CLOSE_LINGER_MS)
        self._socket.close()
        self._path.unlink(missing_ok=True)

    def _accept(self, loop: IoLoop, on_frame: FrameFromSender) -> None:
        try:
            connected, _ = self._socket.accept()
        except OSError as error:
            if not isinstance(error, BlockingIOError):
                logger.warning("cannot let a sender connect: %s", error.strerror)
            return
        route: Route = f"unix-{next(self._numbers)}".encode()

        def on_stream_frame(header: Payload, payload: Payload) -> None:
            loop.run_posted()  # a frame's expect() was posted before the frame was sent
            on_frame(route, header, payload)

        self._streams[route] = FrameStream(
            loop, connected, on_stream_frame, partial(self._streams.pop, route, None)
        )


class DoorbellLink:
    """A `Link` to a `DoorbellListener`."""

    takes_turns = True

    def __init__(
        self,
        loop: IoLoop,
        connected: socket.socket,
        on_frame: FrameFromReceiver,
        on_lost: Callable[[], None],
    ) -> None:
        """Take a connection of `ring_at`; on the loop."""
        self._stream = FrameStream(loop, connected, on_frame, on_lost)
        self.send = self._stream.send
        self.close = self._stream.close


def ring_at(liveness: str) -> socket.socket:
    """Connect to the doorbell of a receiver, by the name of its liveness file.

    Raises:
        SharedMemoryError: nobody is there, or this user may not.
    """
    path = doorbell_of(liveness)
    connected = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connected.settimeout(_CONNECT_TIMEOUT_S)
    try:
        connected.connect(str(path))
    except OSError as error:
        connected.close()
        raise SharedMemoryError(f"nobody answers at {path}: {error.strerror or error}") from error
    return connected
