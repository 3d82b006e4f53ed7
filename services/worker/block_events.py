"""A worker's prefix cache as its gateways follow it, beat by beat."""

from __future__ import annotations

from baton.v1.registry_pb2 import BlockEvents
from engine.kv.block_events import BlockJournal, BlockReader

# 18 bytes each: 144 KiB a beat.
MAX_CHANGES = 8192


class BlockReporter:
    """What one gateway has been told."""

    def __init__(self, journal: BlockJournal) -> None:
        self._reader = BlockReader(journal)
        self._sent_seq = 0

    def restart(self) -> None:
        """Tell everything anew: the gateway may know nothing."""
        self._reader.restart()

    def next(self) -> tuple[BlockEvents, bool]:
        """Return what comes next, and whether there is still more."""
        events = self._reader.read(MAX_CHANGES)
        self._sent_seq = events.until_seq
        message = BlockEvents(
            reset=events.reset,
            after_seq=events.after_seq,
            until_seq=events.until_seq,
            stored=events.stored,
            evicted=events.evicted,
        )
        return message, events.until_seq < events.newest_seq

    def acknowledge(self, blocks_seq: int) -> bool:
        """Hear how far the gateway has got; if not to the end of what was sent, begin anew (False)."""
        if blocks_seq != self._sent_seq:
            self.restart()
        return blocks_seq == self._sent_seq
