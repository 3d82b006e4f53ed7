"""Lets blocks go layer by layer while the step that computes the last of a prompt still runs.

So that after its end nothing is left to copy, but for what comes too late for that.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Sequence

from engine.events import BlocksFilling
from services.prefill.hand_off import HandOff

_Step = list[tuple[HandOff, BlocksFilling]]

_logger = logging.getLogger(__name__)


class LayerWatch:
    """A thread that waits for the moments of one step after the other; it begins with the first."""

    def __init__(self) -> None:
        self._steps: queue.SimpleQueue[_Step | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def follow(self, step: Sequence[tuple[HandOff, BlocksFilling]]) -> None:
        """Push what a step fills, as it comes; on the engine's thread, in the order of the steps.

        Args:
            step: all that is filled by one step, at the same moments.
        """
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="kv-layers", daemon=True)
            self._thread.start()
        self._steps.put(list(step))

    def close(self) -> None:
        """End the thread, when the steps have come so far."""
        if self._thread is not None:
            self._steps.put(None)
            self._thread.join()
            self._thread = None

    def _run(self) -> None:
        while (step := self._steps.get()) is not None:
            try:
                for part in step[0][1].parts:
                    part.wait()
                    for hand_off, event in step:
                        hand_off.push_part(event, part.num_bytes)
            except Exception:
                # Nothing is lost: the engine says what became of the blocks when the step is over.
                _logger.exception("the layers of a step cannot be followed")
