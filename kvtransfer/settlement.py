"""Whether a prompt is still computed in the receiver's own blocks."""

from __future__ import annotations

from collections.abc import Callable


class Settlement:
    """Lets those wait who may go on only when nothing is computed in place any more.

    Attributes:
        is_open: something is, or may be.
    """

    def __init__(self, is_open: bool) -> None:
        self.is_open = is_open
        self._waiting: list[Callable[[], object]] = []

    def when_settled(self, callback: Callable[[], object]) -> None:
        """Call back once it is settled; at once if it is."""
        if self.is_open:
            self._waiting.append(callback)
        else:
            callback()

    def settle(self) -> None:
        """Nothing is computed in place any more. Idempotent."""
        self.is_open = False
        callbacks, self._waiting = self._waiting, []
        for callback in callbacks:
            callback()
