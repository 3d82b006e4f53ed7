"""Just enough of HTTP/2 to call one gRPC method on many streams: grpc.aio costs a client 45 µs a message.

It announces the largest windows, so servers never wait for it, and does not look at theirs: requests here
are small. A stream's status is not read either: whoever counts messages notices.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

from bench.gateway_parts.stamped import StampedConnection

_DATA, _HEADERS, _RST_STREAM, _SETTINGS, _PING, _GOAWAY, _WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
_END_STREAM, _ACK, _END_HEADERS = 1, 1, 4
_INITIAL_WINDOW_SIZE = 4
_LARGEST_WINDOW = (1 << 31) - 1
_FIRST_WINDOW = 65_535
_FRAME_HEAD = 9
_MESSAGE_HEAD = 5

# Takes a stream's number, from 0, a message, and when it arrived.
OnMessage = Callable[[int, bytes, float], None]


class GrpcConnection(StampedConnection):
    """Calls one method; `done` when all calls have ended."""

    def __init__(self, address: str, method: str, on_message: OnMessage) -> None:
        super().__init__(address)
        self._on_message = on_message
        self._headers = b"".join(
            b"\x00%c%b%c%b" % (len(name), name, len(value), value)  # literals that nobody remembers
            for name, value in (
                (b":method", b"POST"), (b":scheme", b"http"), (b":path", method.encode()),
                (b":authority", address.encode()), (b"te", b"trailers"),
                (b"content-type", b"application/grpc"),
            )
        )  # fmt: skip
        self._tail = b""
        self._messages: list[bytearray] = []
        self._open = 0
        settings = struct.pack(">HI", _INITIAL_WINDOW_SIZE, _LARGEST_WINDOW)
        window = struct.pack(">I", _LARGEST_WINDOW - _FIRST_WINDOW)
        preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
        self.send(preface + _frame(_SETTINGS, 0, 0, settings) + _frame(_WINDOW_UPDATE, 0, 0, window))

    def call(self) -> int:
        """Begin a call; returns its number."""
        number = len(self._messages)
        self._messages.append(bytearray())
        self._open += 1
        self.send(_frame(_HEADERS, _END_HEADERS, 2 * number + 1, self._headers))
        return number

    def write(self, *requests: tuple[int, bytes], ends: bool = False) -> None:
        """Send messages, each of a call; `ends`: it is the call's last."""
        flags = _END_STREAM if ends else 0
        frames = [
            _frame(_DATA, flags, 2 * call + 1, struct.pack(">BI", 0, len(message)) + message)
            for call, message in requests
        ]
        self.send(b"".join(frames))

    def received(self, data: bytes, arrived_s: float) -> None:
        """Take frames, whole or in parts."""
        data = self._tail + data
        at = 0
        while at + _FRAME_HEAD <= len(data):
            size = int.from_bytes(data[at : at + 3])
            end = at + _FRAME_HEAD + size
            if end > len(data):
                break
            stream = int.from_bytes(data[at + 5 : at + 9])
            self._take(data[at + 3], data[at + 4], stream, data[at + _FRAME_HEAD : end], arrived_s)
            at = end
        self._tail = data[at:]

    def _take(self, kind: int, flags: int, stream: int, payload: bytes, arrived_s: float) -> None:
        if kind == _DATA:
            self._take_data(stream // 2, payload, arrived_s)
        elif kind == _SETTINGS and not flags & _ACK:
            self.send(_frame(_SETTINGS, _ACK, 0, b""))
        elif kind == _PING and not flags & _ACK:
            self.send(_frame(_PING, _ACK, 0, payload))
        elif kind in (_RST_STREAM, _GOAWAY):
            raise ConnectionError(f"the server ended it: frame {kind} {payload!r}")
        if kind in (_DATA, _HEADERS) and flags & _END_STREAM:
            self._open -= 1
            if self._open == 0 and not self.done.done():
                self.done.set_result(None)

    def _take_data(self, number: int, payload: bytes, arrived_s: float) -> None:
        got = self._messages[number]
        got += payload
        while len(got) >= _MESSAGE_HEAD:
            end = _MESSAGE_HEAD + int.from_bytes(got[1:_MESSAGE_HEAD])
            if len(got) < end:
                break
            self._on_message(number, bytes(got[_MESSAGE_HEAD:end]), arrived_s)
            del got[:end]


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return struct.pack(">HBBBI", len(payload) >> 8, len(payload) & 255, kind, flags, stream) + payload
