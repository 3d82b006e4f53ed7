"""What became of recent requests, as bars on a time axis. Holds no text and no token ids."""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field


@dataclass(slots=True)
class Bar:
    """A part of a request's life.

    Attributes:
        kind: "queue" (in the gateway, or for a reservation), "prefill_queue", "chunk", "handoff" or "decode".
        begin_s, end_s: from receipt, seconds; end_s None: still going on.
        worker: where; empty: at the gateway.
        tokens: that were computed or generated.
        failed: why it came to nothing; empty: it did not.
    """

    kind: str
    begin_s: float
    end_s: float | None = None
    worker: str = ""
    tokens: int = 0
    failed: str = ""


@dataclass(slots=True, eq=False)
class Timeline:
    """One request.

    Attributes:
        key: unique.
        request_id: the client's.
        started_unix_s: receipt.
        outcome: "running", then "ok", "error" or "cancelled"; reason: of an error.
        stamp: grows with each change of any timeline.
    """

    key: str
    request_id: str
    received_s: float
    started_unix_s: float
    prompt_tokens: int
    cached_tokens: int = 0
    tokens: int = 0
    ttft_s: float | None = None
    total_s: float | None = None
    retries: int = 0
    transport: str = ""
    handoff_bytes: int = 0
    outcome: str = "running"
    reason: str = ""
    bars: list[Bar] = field(default_factory=list)
    stamp: int = 0

    def now_s(self) -> float:
        """Return the time since receipt, seconds."""
        return time.monotonic() - self.received_s

    def begin(self, kind: str, worker: str = "", at_s: float | None = None) -> Bar:
        """Add a bar that has no end yet."""
        bar = Bar(kind, self.now_s() if at_s is None else at_s, worker=worker)
        self.bars.append(bar)
        return bar

    def end_open(self, failed: str = "") -> None:
        """End every bar that has no end."""
        now_s = self.now_s()
        for bar in self.bars:
            if bar.end_s is None:
                bar.end_s, bar.failed = now_s, failed


class Timelines:
    """The requests under way, and the last ones that ended.

    Args:
        most_ended: how many of those are kept.
    """

    def __init__(self, most_ended: int = 200) -> None:
        self._stamps = itertools.count(1)
        self._running: dict[str, Timeline] = {}
        self._updates: dict[str, Callable[[], None]] = {}
        self._ended: deque[Timeline] = deque(maxlen=most_ended)

    def __len__(self) -> int:
        return len(self._running) + len(self._ended)

    def add(self, timeline: Timeline, update: Callable[[], None] | None = None) -> None:
        """Follow a request from now on; `update` is called before it is shown, while it runs."""
        self._running[timeline.key] = timeline
        if update is not None:
            self._updates[timeline.key] = update
        self.touch(timeline)

    def touch(self, timeline: Timeline) -> None:
        """Note that a timeline changed."""
        timeline.stamp = next(self._stamps)

    def end(self, timeline: Timeline) -> None:
        """Move a request to those that ended; the oldest of them may be dropped. Idempotent."""
        if self._running.pop(timeline.key, None) is not None:
            self._updates.pop(timeline.key, None)
            self._ended.append(timeline)
            self.touch(timeline)

    def since(self, stamp: int, most: int) -> list[Timeline]:
        """Return what changed after `stamp`, at most the `most` latest, oldest change first."""
        for update in self._updates.values():
            update()
        changed = [timeline for timeline in self if timeline.stamp > stamp]
        changed.sort(key=lambda timeline: timeline.stamp)
        return changed[-most:]

    def __iter__(self) -> Iterator[Timeline]:
        yield from self._ended
        yield from self._running.values()
