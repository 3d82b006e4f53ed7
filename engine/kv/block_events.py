"""What the prefix cache gained and lost, for readers that follow it from other threads.

The journal keeps the last change of each hash, so it never holds more than the cache
itself and a bounded number of evictions. A reader that falls too far behind starts
over with what is cached now; nothing is kept for any reader.
"""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class BlockEvents:
    """Changes of one cache, each hash at most once.

    Attributes:
        reset: forget what was known before.
        after_seq: the sequence number that these follow; 0 with `reset`.
        until_seq: the one that a reader has got to with these.
        newest_seq: that of the newest change; above `until_seq` there is more to read.
        stored: hashes now cached.
        evicted: hashes no longer cached.
    """

    reset: bool
    after_seq: int
    until_seq: int
    newest_seq: int
    stored: tuple[bytes, ...]
    evicted: tuple[bytes, ...]


class BlockJournal:
    """Written by the engine thread, read by any.

    Args:
        max_evicted: evictions remembered; more than a reader misses make it start over.
    """

    def __init__(self, max_evicted: int) -> None:
        self._max_evicted = max_evicted
        self._lock = threading.Lock()
        self._seq = 0
        # Sequence number -> (hash, is cached), oldest first; and the number of each hash there.
        self._changes: dict[int, tuple[bytes, bool]] = {}
        self._seq_of: dict[bytes, int] = {}
        self._evictions: deque[int] = deque()
        # Evictions up to here are forgotten.
        self._forgotten = 0

    def stored(self, block_hash: bytes) -> None:
        """Note that a hash is cached."""
        with self._lock:
            self._change(block_hash, True)

    def evicted(self, block_hash: bytes) -> None:
        """Note that a hash is not cached any more."""
        with self._lock:
            self._change(block_hash, False)
            self._evictions.append(self._seq)
            while len(self._evictions) > self._max_evicted:
                self._forgotten = self._evictions.popleft()
                # It is gone already if the hash was stored again.
                forgotten = self._changes.pop(self._forgotten, None)
                if forgotten is not None:
                    del self._seq_of[forgotten[0]]

    def read(self, after_seq: int, base_seq: int, limit: int) -> BlockEvents:
        """Return the changes after `after_seq`, the oldest `limit` of them.

        Args:
            after_seq: `until_seq` of what was read before; 0: everything.
            base_seq: `newest_seq` when the reader began at 0: older evictions are nothing to it.
            limit: >= 1.
        """
        with self._lock:
            reset = after_seq == 0 or self._forgotten > max(after_seq, base_seq)
            start = 0 if reset else after_seq
            newer = []
            for seq in reversed(self._changes):
                if seq <= start:
                    break
                newer.append(seq)
            page = newer[: -limit - 1 : -1]
            until = self._seq if len(page) == len(newer) else page[-1]
            newest = self._seq
            changes = [self._changes[seq] for seq in page]
        return BlockEvents(
            reset=reset,
            after_seq=start,
            until_seq=until,
            newest_seq=newest,
            stored=tuple(block_hash for block_hash, cached in changes if cached),
            evicted=tuple(block_hash for block_hash, cached in changes if not cached),
        )

    def _change(self, block_hash: bytes, cached: bool) -> None:
        old = self._seq_of.pop(block_hash, None)
        if old is not None:
            del self._changes[old]
        self._seq += 1
        self._changes[self._seq] = (block_hash, cached)
        self._seq_of[block_hash] = self._seq


class BlockReader:
    """One reader's place in a journal. Used by one thread."""

    def __init__(self, journal: BlockJournal) -> None:
        self._journal = journal
        self._after_seq = self._base_seq = 0

    def restart(self) -> None:
        """Begin again with everything that is cached."""
        self._after_seq = 0

    def read(self, limit: int) -> BlockEvents:
        """Return the next changes, at most `limit` (>= 1)."""
        events = self._journal.read(self._after_seq, self._base_seq, limit)
        self._after_seq = events.until_seq
        if events.reset:
            self._base_seq = events.newest_seq
        return events
