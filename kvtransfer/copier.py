"""The sender's copy thread, and the gate that every direct write passes."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable

from kvtransfer.links import DirectWriter

logger = logging.getLogger(__name__)


class Copier:
    """Runs copy jobs one after another on a thread of its own."""

    def __init__(self, name: str) -> None:
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def submit(self, job: Callable[[], None]) -> None:
        """Queue a job; from any thread."""
        self._jobs.put(job)

    def close(self) -> None:
        """Finish the queued jobs and end the thread."""
        self._jobs.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            try:
                job()
            except Exception:
                logger.exception("a copy job failed")


class WriteGate:
    """Lets a transfer write directly until it is closed or its deadline passes.

    The check and the copy of one block happen under one lock, so that nothing is being
    written once `close` has returned.

    Attributes:
        deadline: on the sender's clock, seconds; 0 until the receiver grants the first write.
    """

    def __init__(self, writer: DirectWriter, clock: Callable[[], float]) -> None:
        self.deadline = 0.0
        self._writer = writer
        self._clock = clock
        self._lock = threading.Lock()
        self._closed = False

    def write(self, group: int, target_block_id: int, source_block_id: int) -> bool:
        """Copy one block, unless it is too late.

        Returns:
            Whether the block was copied.
        """
        with self._lock:
            if self._closed or self._clock() >= self.deadline:
                return False
            self._writer.write(group, target_block_id, source_block_id)
            return True

    def close(self) -> None:
        """Let nothing pass from now on; waits for the block being copied."""
        with self._lock:
            self._closed = True
