"""A TCP connection that knows when the kernel got what it reads, however late it is read.

So a client that is slower than a server under test does not count against it.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import time

_SO_TIMESTAMPNS = 35  # Linux; the socket module does not name it
_TIMESPEC = struct.Struct("qq")
_READ_BYTES = 1 << 18


class StampedConnection:
    """Must be made, and used, in one event loop.

    Attributes:
        done: ends when all that is waited for has come.
    """

    def __init__(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        self._socket = socket.create_connection((host, int(port)))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
        self._socket.setblocking(False)
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._socket, self._read)
        # Stamps are of the wall clock, everything else here is of the monotonic one.
        self._wall_s = time.time() - time.monotonic()
        self.done: asyncio.Future[None] = self._loop.create_future()

    def send(self, data: bytes) -> None:
        """Send; BlockingIOError if the server does not read."""
        if self._socket.send(data) != len(data):
            raise BlockingIOError("the server does not read")

    def received(self, data: bytes, arrived_s: float) -> None:
        """Take what came; `arrived_s`: when the last of it did, time.monotonic()."""
        raise NotImplementedError

    def close(self) -> None:
        """Close; idempotent."""
        if self._socket.fileno() >= 0:
            self._loop.remove_reader(self._socket)
            self._socket.close()

    def _read(self) -> None:
        data, stamps, _flags, _address = self._socket.recvmsg(_READ_BYTES, socket.CMSG_SPACE(_TIMESPEC.size))
        arrived_s = time.monotonic()
        for _level, kind, stamp in stamps:
            if kind == _SO_TIMESTAMPNS:
                whole_s, ns = _TIMESPEC.unpack(stamp)
                arrived_s = whole_s - self._wall_s + ns / 1e9
        try:
            if not data:
                raise ConnectionError("closed before the end")
            self.received(data, arrived_s)
        except Exception as error:
            if not self.done.done():
                self.done.set_exception(error)
        if not data or self.done.done():
            self.close()
