"""The one thread that owns the sockets and the state of a sender or a receiver."""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

import zmq

from kvtransfer.errors import ClosedError

T = TypeVar("T")
TICK_S = 0.02

logger = logging.getLogger(__name__)


class IoLoop:
    """Runs posted commands, socket readers and a tick, one at a time, on a named thread."""

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
        self._readers: dict[zmq.Socket[bytes], Callable[[], object]] = {}
        self._poller = zmq.Poller()
        self._wake_in, self._wake_out = socket.socketpair()
        self._wake_in.setblocking(False)
        self._wake_out.setblocking(False)
        self._poller.register(self._wake_out, zmq.POLLIN)
        self._lock = threading.Lock()
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

    def add_reader(self, reader: zmq.Socket[bytes], on_readable: Callable[[], object]) -> None:
        """Call `on_readable` whenever a socket has messages; on the loop only."""
        self._readers[reader] = on_readable
        self._poller.register(reader, zmq.POLLIN)

    def remove_reader(self, reader: zmq.Socket[bytes]) -> None:
        """Forget a socket; on the loop only."""
        if self._readers.pop(reader, None) is not None:
            self._poller.unregister(reader)

    def _wake(self) -> None:
        with contextlib.suppress(BlockingIOError):  # full of wake-ups: it is awake
            self._wake_in.send(b"\0")

    def _run(self) -> None:
        next_tick = 0.0
        while not (self._closed and not self._commands):
            ready = self._poller.poll(int(TICK_S * 1000) if self._busy() else None)
            for source, _ in ready:
                if source is self._wake_out or source == self._wake_out.fileno():
                    self._wake_out.recv(4096)
            self.run_posted()
            for source, _ in ready:
                if isinstance(source, zmq.Socket) and source in self._readers:
                    _guarded(self._readers[source])
            if (now := time.monotonic()) >= next_tick:
                next_tick = now + TICK_S
                _guarded(self._tick)


def _guarded(callback: Callable[[], object]) -> None:
    # One bad callback must not end the thread that everybody's leases depend on.
    try:
        callback()
    except Exception:
        logger.exception("a callback of the transfer loop failed")
