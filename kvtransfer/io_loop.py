"""What owns the sockets and the state of a sender or a receiver: a thread, and whoever has its turn.

All of it happens in turns, one at a time. Most are the thread's own. Another thread that has news may
take a turn itself while the loop is at rest (`run`), which spares it waking the thread and being waited
for; ZeroMQ's sockets, which may not change threads while they are polled, are no part of such a turn.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import TypeVar

import zmq

from kvtransfer.errors import ClosedError

T = TypeVar("T")
Source = zmq.Socket[bytes] | socket.socket
TICK_S = 0.02

logger = logging.getLogger(__name__)


class IoLoop:
    """Runs posted commands, socket readers and a tick, one at a time."""

    def __init__(self, name: str, tick: Callable[[], None], busy: Callable[[], bool]) -> None:
        """Prepare; `start` starts the thread.

        Args:
            name: the thread's.
            tick: called at least every `TICK_S` seconds while `busy()`.
            busy: whether time matters; otherwise the thread sleeps until something happens.
        """
        self._tick = tick
        self._busy = busy
        self._commands: deque[Callable[[], object]] = deque()
        self._readers: dict[zmq.Socket[bytes] | int, Callable[[], object]] = {}
        self._writers: dict[int, Callable[[], object]] = {}
        self._poller = zmq.Poller()
        self._wake_in, self._wake_out = socket.socketpair()
        self._wake_in.setblocking(False)
        self._wake_out.setblocking(False)
        self._poller.register(self._wake_out.fileno(), zmq.POLLIN)
        self._lock = threading.Lock()
        self._turn = threading.Lock()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Run what was posted, then end the thread; idempotent. Not from the loop itself."""
        with self._lock:
            already, self._closed = self._closed, True
        if not already:
            self._wake()
            self._thread.join()
            with self._turn:  # somebody else may have one still, but nobody after this
                pass
            self._wake_in.close()
            self._wake_out.close()

    def post(self, command: Callable[[], object]) -> bool:
        """Run a command on the loop, soon and in order; from any thread.

        Returns:
            False if the loop was stopped; then the command never runs.
        """
        with self._lock:
            if self._closed:
                return False
            self._commands.append(command)
            self._wake()
        return True

    def run(self, command: Callable[[], object]) -> None:
        """Run a command at once on this thread if the loop is at rest, else as `post` does; in order.

        The command must use no ZeroMQ socket, be quick, and wait for nobody who needs a turn.
        """
        if self._turn.acquire(blocking=False):
            try:
                if not self._commands and not self._closed:
                    _guarded(command)
                    return
            finally:
                self._turn.release()
        self.post(command)

    def call(self, function: Callable[[], T]) -> T:
        """Run a function on the loop and wait for its result; on the loop itself, at once.

        Raises:
            ClosedError: the loop was stopped. Or what the function raises.
        """
        if threading.current_thread() is self._thread:
            return function()
        future: Future[T] = Future()

        def run() -> None:
            try:
                future.set_result(function())
            except Exception as error:
                future.set_exception(error)

        if not self.post(run):
            raise ClosedError("the transfer loop was closed")
        return future.result()

    def run_posted(self) -> None:
        """Run the commands posted so far; on the loop only, and not from a command."""
        for _ in range(len(self._commands)):
            _guarded(self._commands.popleft())

    def add_reader(self, source: Source, on_readable: Callable[[], object]) -> None:
        """Call `on_readable` whenever a socket has something to read; on the loop only."""
        self._readers[_key(source)] = on_readable
        self._poller.register(_key(source), zmq.POLLIN)

    def remove_reader(self, source: Source) -> None:
        """Forget a socket, which is still open; on the loop only."""
        key = _key(source)
        if self._readers.pop(key, None) is not None:
            self._poller.unregister(key)
        if isinstance(key, int):
            self._writers.pop(key, None)

    def when_writable(self, source: socket.socket, on_writable: Callable[[], object]) -> None:
        """Call `on_writable` once, when a socket with a reader takes data again; on the loop only."""
        self._writers[source.fileno()] = on_writable
        self._poller.modify(source.fileno(), zmq.POLLIN | zmq.POLLOUT)

    def _wake(self) -> None:
        with contextlib.suppress(BlockingIOError):  # full of wake-ups: it is awake
            self._wake_in.send(b"\0")

    def _run(self) -> None:
        next_tick = 0.0
        while not (self._closed and not self._commands):
            ready = self._poller.poll(int(TICK_S * 1000) if self._busy() else None)
            with self._turn:
                self._take_turn(ready)
                if (now := time.monotonic()) >= next_tick:
                    next_tick = now + TICK_S
                    _guarded(self._tick)

    def _take_turn(self, ready: Sequence[tuple[zmq.Socket[bytes] | int, int]]) -> None:
        for key, _ in ready:
            if key == self._wake_out.fileno():
                self._wake_out.recv(4096)
        self.run_posted()
        for key, events in ready:
            if isinstance(key, int) and events & zmq.POLLOUT and key in self._writers:
                self._poller.modify(key, zmq.POLLIN)
                _guarded(self._writers.pop(key))
            if events & ~zmq.POLLOUT and key in self._readers:
                _guarded(self._readers[key])


def _key(source: Source) -> zmq.Socket[bytes] | int:
    return source.fileno() if isinstance(source, socket.socket) else source


def _guarded(callback: Callable[[], object]) -> None:
    # One bad callback must not end the thread that everybody's leases depend on.
    try:
        callback()
    except Exception:
        logger.exception("a callback of the transfer loop failed")
