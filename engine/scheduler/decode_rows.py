"""The rows of requests that decode: one token each, most urgent first."""

from __future__ import annotations

from engine.errors import OutOfBlocksError
from engine.kv.kv_manager import KVManager
from engine.request import Request, RequestStatus
from engine.scheduler.admission import Admission
from engine.scheduler.counters import Counters
from engine.scheduler.roster import Roster
from engine.step import BlockCopy, ScheduledRow

# Looked up once a row and step.
_RUNNING = RequestStatus.RUNNING


class DecodeRows:
    """Makes them, and room for their tokens."""

    def __init__(self, kv: KVManager, roster: Roster, admission: Admission, counters: Counters) -> None:
        self._kv = kv
        self._roster = roster
        self._running = roster.running
        self._admission = admission
        self._counters = counters

    def schedule(self, copies: list[BlockCopy]) -> tuple[list[ScheduledRow], list[Request]]:
        """Return the rows of requests that decode, which have advanced, and the other running requests.

        Args:
            copies: gets what the step must copy before it writes.
        """
        rows: list[ScheduledRow] = []
        prompts: list[Request] = []
        for request in tuple(self._running):
            # One further up may have preempted this one.
            if request.status is not _RUNNING:
                continue
            if request.given is not None and self._admission.is_withdrawn(request):
                continue
            start, pending = request.num_computed_tokens, request.num_pending_tokens
            if len(request.token_ids) + pending - start != 1:
                prompts.append(request)
            elif pending and (start + 1 >= request.token_limit or request.needs_host_token):
                # The token under way is its last, or must be known first.
                continue
            elif start < request.num_writable_slots or self._make_room(request, copies):
                rows.append(ScheduledRow(request, start, 1, True, pending > 0))
                request.num_computed_tokens = start + 1
                request.num_pending_tokens = pending + 1
                request.num_rows_under_way += 1
        return rows, prompts

    def _make_room(self, request: Request, copies: list[BlockCopy]) -> bool:
        """Make the next slot writable; preempts the least urgent, which may be the request itself.

        Returns:
            False: not in this step.
        """
        num_slots = request.num_computed_tokens + 1
        while True:
            try:
                copies += self._kv.grow(request, num_slots)
                return True
            except OutOfBlocksError:
                if not self._kv.fits(num_slots):
                    # First comes the token that is under way.
                    if request.num_rows_under_way == 0:
                        self._roster.fail(request.request_id, self._admission.outgrown(request))
                    return False
            if self._kv.grows_later(request, num_slots):
                return False
            victim = self._running.least_urgent()
            self._roster.preempt(victim)
            self._counters.preemptions += 1
            if victim is request:
                return False
