"""Who gets blocks next: requests from the head of the queue, while there is room."""

from __future__ import annotations

from engine.errors import BlocksWithdrawnError, OutOfBlocksError
from engine.events import ReservationGranted
from engine.kv.kv_manager import KVManager
from engine.request import Request, RequestStatus
from engine.scheduler.counters import Counters
from engine.scheduler.filled_blocks import FilledBlocks
from engine.scheduler.outbox import Outbox
from engine.scheduler.roster import Roster


class Admission:
    """Admits by priority, then arrival; the head of the queue blocks those behind it."""

    def __init__(
        self, kv: KVManager, roster: Roster, filled: FilledBlocks, outbox: Outbox, counters: Counters
    ) -> None:
        self._kv = kv
        self._roster = roster
        self._filled = filled
        self._outbox = outbox
        self._counters = counters
        # Reservations whose cached blocks are on their way from the host.
        self._arriving: list[Request] = []

    def admit(self) -> list[Request]:
        """Give blocks to as many as there is room for; grant reservations.

        Returns:
            requests that run now.
        """
        self._grant_arrived()
        queue, running = self._roster.queue, self._roster.running
        admitted: list[Request] = []
        while queue and running.num_places:
            request = queue.head
            if self.is_withdrawn(request):
                continue
            num_slots = request.num_tokens + (not request.hold_blocks)
            if request.given is None and not self._kv.fits(num_slots):
                self._roster.fail(request.request_id, self.outgrown(request))
                continue
            try:
                self._kv.admit(request, num_slots, leave=1, spare=running.num_spare)
            except OutOfBlocksError:
                break
            self._roster.admit(request)
            if request.num_preemptions == 0:
                request.num_cached_tokens = request.num_computed_tokens
                self._counters.prefix_query_tokens += request.num_tokens
                self._counters.prefix_hit_tokens += request.num_cached_tokens
            if request.status is RequestStatus.RESERVED:
                self._grant(request)
                continue
            admitted.append(request)
            if request.hold_blocks:
                self._outbox.events += self._filled.advance(request, self._kv.num_ready_tokens(request))
        return admitted

    def adopt(self, request: Request) -> None:
        """Let an admitted request have blocks that others computed meanwhile."""
        gained = self._kv.adopt(request, leave=1)
        if gained and request.num_preemptions == 0:
            request.num_cached_tokens += gained
            self._counters.prefix_hit_tokens += gained
        # What a step under way computes is not final yet; commit reports it, and this after it.
        if gained and request.hold_blocks and request.num_rows_under_way == 0:
            self._outbox.events += self._filled.advance(request, self._kv.num_ready_tokens(request))

    def is_withdrawn(self, request: Request) -> bool:
        """End a request whose given blocks may not be written any more."""
        if request.given is None or request.given.writable():
            return False
        withdrawn = BlocksWithdrawnError("the worker that gave the blocks took them back")
        self._roster.fail(request.request_id, withdrawn)
        return True

    def outgrown(self, request: Request) -> OutOfBlocksError:
        """Say that a request is too large for the whole pool."""
        return OutOfBlocksError(
            f"{request.num_tokens} tokens and the next one do not fit the pool of "
            f"{self._kv.num_blocks} KV blocks (kv_bytes)"
        )

    def _grant(self, request: Request) -> None:
        """Tell of a reservation once its cached blocks are there: another worker may read them at once."""
        if self._kv.num_ready_tokens(request) < request.num_computed_tokens:
            self._arriving.append(request)
            return
        block_ids = tuple(tuple(ids) for ids in request.block_ids)
        self._outbox.events.append(
            ReservationGranted(request.request_id, block_ids, request.num_cached_tokens)
        )

    def _grant_arrived(self) -> None:
        waiting, self._arriving = self._arriving, []
        for request in waiting:
            if request.status is RequestStatus.RESERVED:
                self._grant(request)
