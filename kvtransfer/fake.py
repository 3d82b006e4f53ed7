"""Frames within one process, with faults on demand: for tests, and for trying things out.

A receiver that binds "fake://" (or "fake://name") can be reached by senders of the same
process. `faults(endpoint)` makes frames to and from it go wrong.
"""

from __future__ import annotations

import enum
import itertools
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from kvtransfer.errors import InvalidTransferError
from kvtransfer.frames import Kind, Payload
from kvtransfer.io_loop import IoLoop
from kvtransfer.links import FrameFromReceiver, FrameFromSender, Route
from kvtransfer.select import FAKE_SCHEME

_KIND_OFFSET = 5  # of the kind's byte in a header

_minted = itertools.count(1)
_listeners: dict[str, FakeListener] = {}
_faults: dict[str, Faults] = {}
_lock = threading.Lock()


class Action(enum.Enum):
    """What goes wrong with a frame."""

    DROP = enum.auto()
    DELAY = enum.auto()
    DUPLICATE = enum.auto()
    CORRUPT = enum.auto()


@dataclass(slots=True)
class _Rule:
    action: Action
    kind: Kind | None
    skip: int
    count: int
    delay_s: float


class Faults:
    """Faults of one endpoint, kept when its receiver is reborn. Methods: from any thread."""

    def __init__(self, endpoint: str) -> None:
        self._endpoint = endpoint
        self._rules: list[_Rule] = []
        self._lock = threading.Lock()

    def add(
        self, action: Action, kind: Kind | None = None, *, skip: int = 0, count: int = 1, delay_s: float = 0.0
    ) -> None:
        """Let frames go wrong.

        Args:
            action: how.
            kind: which; None: all kinds, both directions.
            skip: frames of that kind that pass first.
            count: frames that go wrong then.
            delay_s: for DELAY, seconds; later frames overtake.
        """
        with self._lock:
            self._rules.append(_Rule(action, kind, skip, count, delay_s))

    def clear(self) -> None:
        """Let everything pass again."""
        with self._lock:
            self._rules.clear()

    def kill(self) -> None:
        """Cut the receiver off as if its process died: links to it break, its answers are lost."""
        with _lock:
            listener = _listeners.pop(self._endpoint, None)
        if listener is not None:
            listener.die()

    def deliver(self, send: Callable[[bytes, bytes], object], header: bytes, payload: bytes) -> None:
        """Send a frame on, or not, or twice, or later, or changed."""
        rule = self._match(header)
        if rule is None:
            send(header, payload)
        elif rule.action is Action.DUPLICATE:
            send(header, payload)
            send(header, payload)
        elif rule.action is Action.CORRUPT:
            send(header, bytes([payload[0] ^ 0xFF]) + payload[1:] if payload else payload)
        elif rule.action is Action.DELAY:
            timer = threading.Timer(rule.delay_s, send, (header, payload))
            timer.daemon = True
            timer.start()

    def _match(self, header: bytes) -> _Rule | None:
        with self._lock:
            for rule in self._rules:
                if rule.kind is not None and header[_KIND_OFFSET] != rule.kind:
                    continue
                if rule.skip:
                    rule.skip -= 1
                elif rule.count:
                    rule.count -= 1
                    return rule
        return None


def faults(endpoint: str) -> Faults:
    """Get the faults of a "fake://" endpoint."""
    with _lock:
        return _faults.setdefault(endpoint, Faults(endpoint))


class FakeListener:
    """A `Listener` that takes frames by function call.

    Attributes:
        endpoint: "fake://name".
    """

    def __init__(self, bind: str) -> None:
        """Take an endpoint; "fake://" mints a name.

        Raises:
            InvalidTransferError: the name is taken.
        """
        self.endpoint = bind if bind != FAKE_SCHEME else f"{FAKE_SCHEME}{next(_minted)}"
        self._loop: IoLoop | None = None
        self._faults = faults(self.endpoint)
        self._links: dict[Route, FakeLink] = {}
        self._on_frame: FrameFromSender | None = None
        with _lock:
            if self.endpoint in _listeners:
                raise InvalidTransferError("bind", f"{self.endpoint} is taken")
            _listeners[self.endpoint] = self

    def start(self, loop: IoLoop, on_frame: FrameFromSender) -> None:
        """Begin to take frames."""
        self._loop = loop
        self._on_frame = on_frame

    def send(self, route: Route, header: bytes, payload: bytes = b"") -> None:
        """Send a frame to one sender."""
        link = self._links.get(route)
        if link is not None:
            self._faults.deliver(link.deliver, header, payload)

    def close(self) -> None:
        """Stop; links break."""
        with _lock:
            if _listeners.get(self.endpoint) is self:
                del _listeners[self.endpoint]
        self.die()

    def die(self) -> None:
        """Break every link; from any thread."""
        self._on_frame = None
        links, self._links = self._links, {}
        for link in links.values():
            link.break_off()

    def take(self, link: FakeLink, header: bytes, payload: bytes) -> None:
        """Take a frame from a sender; from any thread."""
        if self._loop is not None:
            self._loop.post(partial(self._take, link, header, payload))

    def _take(self, link: FakeLink, header: bytes, payload: bytes) -> None:
        if self._on_frame is not None:
            self._links[link.route] = link
            self._on_frame(link.route, header, payload)


class FakeLink:
    """A `Link` to a `FakeListener`."""

    takes_turns = False

    def __init__(
        self, loop: IoLoop, endpoint: str, on_frame: FrameFromReceiver, on_lost: Callable[[], None]
    ) -> None:
        self.route = f"fake-{next(_minted)}".encode()
        self._loop = loop
        self._endpoint = endpoint
        self._on_frame = on_frame
        self._on_lost = on_lost
        self._faults = faults(endpoint)
        self._closed = False

    def send(self, header: bytes, payload: Payload = b"") -> None:
        """Send a frame; lost if nobody listens there."""
        if not self._closed:
            self._faults.deliver(self._transmit, header, bytes(payload))

    def close(self, linger_ms: int) -> None:
        """Stop."""
        self._closed = True

    def deliver(self, header: bytes, payload: bytes) -> None:
        """Take a frame from the receiver; from any thread."""
        self._loop.post(lambda: None if self._closed else self._on_frame(header, payload))

    def break_off(self) -> None:
        """Notice that the receiver is gone; from any thread."""
        self._loop.post(lambda: None if self._closed else self._on_lost())

    def _transmit(self, header: bytes, payload: bytes) -> None:
        with _lock:
            listener = _listeners.get(self._endpoint)
        if listener is not None:
            listener.take(self, header, payload)
