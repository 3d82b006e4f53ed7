"""The sender's copy threads, and the gate that every direct write passes."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Sequence

from kvtransfer.links import DirectWriter

logger = logging.getLogger(__name__)


# One thread does not fill the memory bus, and after the last chunk the cores are idle.
NUM_COPY_THREADS = 2


class Copier:
    """Runs copy jobs on threads of its own, which may wait: for a GPU, or for a chunk's compute."""

    def __init__(self, name: str) -> None:
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._threads = [
            threading.Thread(target=self._run, name=f"{name}-{number}", daemon=True)
            for number in range(NUM_COPY_THREADS)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, job: Callable[[], None]) -> None:
        """Queue a job; from any thread."""
        self._jobs.put(job)

    def close(self) -> None:
        """Finish the queued jobs and end the threads."""
        for _ in self._threads:
            self._jobs.put(None)
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            try:
                job()
            except Exception:
                logger.exception("a copy job failed")


class WriteGate:
    """Lets a transfer write directly until it is closed or its deadline passes.

    Nothing is being written once `close` has returned.

    Attributes:
        deadline: on the sender's clock, seconds; 0 until the receiver grants the first write.
        batch_blocks: blocks that one `write` may take.
    """

    def __init__(
        self, writer: DirectWriter, clock: Callable[[], float], receiver_lives: Callable[[], bool]
    ) -> None:
        self.deadline = 0.0
        self.batch_blocks = writer.batch_blocks
        self.piece_blocks = writer.piece_blocks
        self._writer = writer
        self._clock = clock
        self._receiver_lives = receiver_lives
        self._idle = threading.Condition()
        self._num_writing = 0
        self._closed = False

    @property
    def is_open(self) -> bool:
        """Whether the receiver granted writing, and nothing ended it; from any thread."""
        return not self._closed and self._clock() < self.deadline and self._receiver_lives()

    def write(
        self,
        group: int,
        target_block_ids: Sequence[int],
        source_block_ids: Sequence[int],
        part: range | None = None,
    ) -> int | None:
        """Copy one batch of blocks, or a part of each, unless it is too late.

        Returns:
            Bytes moved; None: too late, nothing was copied.
        """
        with self._idle:
            if not self.is_open:
                return None
            self._num_writing += 1
        try:
            return self._writer.write(group, target_block_ids, source_block_ids, part)
        finally:
            with self._idle:
                self._num_writing -= 1
                if not self._num_writing:
                    self._idle.notify_all()

    def close(self) -> None:
        """Let nothing pass from now on; waits for the blocks being copied."""
        with self._idle:
            self._closed = True
            self._idle.wait_for(lambda: not self._num_writing)
