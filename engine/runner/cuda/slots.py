"""Which request has which place in the device's state, and what the device knows of its block table."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from engine.request import Request
from engine.step import ScheduledRow


class Slots:
    """Gives each request a slot and keeps the device's block tables up to date by small edits.

    A preempted request keeps its slot while there are enough.
    """

    def __init__(self, count: int, max_blocks: int) -> None:
        """`count`: most rows of a step; `max_blocks`: most blocks of a request."""
        self._max_blocks = max_blocks
        self._free = list(range(count - 1, -1, -1))
        self._slots: dict[str, int] = {}
        self._requests: list[Request | None] = [None] * count
        self._tables: list[list[int]] = [[] for _ in range(count)]
        self._where: list[int] = []
        self._blocks: list[int] = []

    def forget(self, request_ids: Iterable[str]) -> None:
        """Free the slots of requests that ended; unknown ids are ignored."""
        for request_id in request_ids:
            slot = self._slots.pop(request_id, None)
            if slot is not None:
                self._requests[slot] = None
                self._free.append(slot)

    def find(self, rows: Sequence[ScheduledRow]) -> tuple[list[int], list[int]]:
        """Slots of the rows, and the rows whose slot is new to them; notes what changed in block tables."""
        found: list[int] = []
        new: list[int] = []
        slots, requests, tables = self._slots, self._requests, self._tables
        for index, row in enumerate(rows):
            request = row.request
            slot = slots.get(request.request_id, -1)
            # An id may come back with another request behind it.
            if slot < 0 or requests[slot] is not request:
                slot = self._assign(request, rows)
                new.append(index)
            found.append(slot)
            block_ids = request.block_ids[0]
            if tables[slot] != block_ids:
                self._edit(slot, block_ids)
        return found, new

    def take_edits(self) -> tuple[list[int], list[int]]:
        """Indices into the flat tables and the block ids that belong there, since the last call."""
        edits = self._where, self._blocks
        self._where, self._blocks = [], []
        return edits

    def _assign(self, request: Request, rows: Sequence[ScheduledRow]) -> int:
        slot = self._slots.get(request.request_id)
        if slot is None:
            if not self._free:
                running = {row.request.request_id for row in rows}
                self.forget([request_id for request_id in self._slots if request_id not in running])
            slot = self._free.pop()
        self._slots[request.request_id] = slot
        self._requests[slot] = request
        self._tables[slot] = []
        return slot

    def _edit(self, slot: int, block_ids: Sequence[int]) -> None:
        known, keep = self._tables[slot], 0
        for old, new in zip(known, block_ids, strict=False):
            if old != new:
                break
            keep += 1
        assert len(block_ids) <= self._max_blocks, f"{len(block_ids)} blocks, at most {self._max_blocks}"
        start = slot * self._max_blocks
        self._where += range(start + keep, start + len(block_ids))
        self._blocks += block_ids[keep:]
        self._tables[slot] = list(block_ids)
