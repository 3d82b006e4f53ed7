"""All requests and where each of them is. Every change of a status happens here.

add ─► WAITING ─ admit ─► RUNNING ─ preempt ─► WAITING
add ─► QUEUED ── admit ─► RESERVED ─ start ──► RUNNING
from anywhere: cancel, fail, end ─► FINISHED, holding nothing; hold ─► FINISHED, blocks kept
"""

from __future__ import annotations

from collections.abc import Iterable

from engine.errors import EngineError
from engine.events import RequestCancelled, RequestFailed
from engine.kv.kv_manager import KVManager
from engine.request import Request, RequestStatus
from engine.scheduler.batch import Batch
from engine.scheduler.filled_blocks import FilledBlocks
from engine.scheduler.finish import token_limit
from engine.scheduler.outbox import Outbox
from engine.scheduler.waiting import WaitingQueue
from engine.step import ScheduledRow


class Roster:
    """Keeps requests, queue, batch and blocks in step with each other.

    Attributes:
        requests: by id, until they end.
        queue: those that wait.
        running: those in the batch.
    """

    def __init__(
        self, kv: KVManager, batch: Batch, filled: FilledBlocks, outbox: Outbox, context_length: int
    ) -> None:
        self.requests: dict[str, Request] = {}
        self.queue = WaitingQueue()
        self.running = batch
        # Ended, and a step under way still writes blocks that are not ours.
        self._leaving: dict[Request, RequestCancelled | RequestFailed] = {}
        self._kv = kv
        self._filled = filled
        self._outbox = outbox
        self._context_length = context_length

    def add(self, request: Request) -> None:
        """Queue a request whose status is WAITING (to be computed here) or QUEUED (for a reservation)."""
        assert request.status in (RequestStatus.WAITING, RequestStatus.QUEUED), request.status
        assert request.request_id not in self.requests, f"{request.request_id} is here already"
        assert request.num_rows_under_way == 0, f"{request.request_id} was here before"
        self.requests[request.request_id] = request
        self.queue.add(request)

    def admit(self, request: Request) -> None:
        """Take a request that has got its blocks out of the queue."""
        assert request.num_rows_under_way == 0, f"{request.request_id}: its last token is not known yet"
        self.queue.remove(request)
        if request.status is RequestStatus.QUEUED:
            request.status = RequestStatus.RESERVED
            self.running.num_reserved += 1
        else:
            self._run(request)

    def reserved(self, request_id: str) -> Request | None:
        """Return the request that holds this reservation, if any does."""
        request = self.requests.get(request_id)
        return request if request is not None and request.status is RequestStatus.RESERVED else None

    def start(self, request: Request) -> None:
        """Let a reserved request join the batch."""
        self.running.num_reserved -= 1
        self._run(request)

    def join(self, request: Request) -> None:
        """Take a new request that has its blocks into the batch."""
        self.requests[request.request_id] = request
        self._run(request)

    def _run(self, request: Request) -> None:
        request.status = RequestStatus.RUNNING
        request.token_limit = token_limit(request, self._context_length)
        self.running.add(request)

    def preempt(self, request: Request) -> None:
        """Take a running request's blocks, to the host if there is room; it queues up where it once stood."""
        self.running.remove(request)
        if not self._kv.swap_out(request):
            self._kv.free(request)
        request.status = RequestStatus.WAITING
        request.num_preemptions += 1
        self.queue.add(request)

    def hold(self, request: Request) -> None:
        """A running request is done and keeps its blocks until it is cancelled."""
        self.running.remove(request)
        request.status = RequestStatus.FINISHED
        self._outbox.dropped_ids.append(request.request_id)

    def land(self, rows: Iterable[ScheduledRow]) -> None:
        """Rows are not under way any more."""
        for row in rows:
            request = row.request
            request.num_rows_under_way -= 1
            request.num_pending_tokens -= row.sample
        if self._leaving:
            for request in [r for r in self._leaving if r.num_rows_under_way == 0]:
                self._tell_end(request, self._leaving.pop(request))

    def end(self, request: Request, event: RequestCancelled | RequestFailed | None = None) -> None:
        """Take a request out of wherever it is; it holds nothing afterwards.

        Blocks that another worker gave are that worker's as soon as it hears of the end: so it
        hears of it when no step under way writes them.

        Args:
            event: tells of the end; None: the last token did.
        """
        del self.requests[request.request_id]
        match request.status:
            case RequestStatus.WAITING | RequestStatus.QUEUED:
                self.queue.remove(request)
            case RequestStatus.RESERVED:
                self.running.num_reserved -= 1
                self._kv.free(request)
            case RequestStatus.RUNNING:
                self.running.remove(request)
                self._kv.free(request)
            case RequestStatus.FINISHED:
                self._kv.free(request)
        request.status = RequestStatus.FINISHED
        self._kv.forget(request)
        self._filled.forget(request)
        self._outbox.dropped_ids.append(request.request_id)
        if event is not None and request.given is not None and request.num_rows_under_way:
            self._leaving[request] = event
        else:
            self._tell_end(request, event)

    def _tell_end(self, request: Request, event: RequestCancelled | RequestFailed | None) -> None:
        if event is not None:
            self._outbox.events.append(event)
        self._outbox.ended_ids.append(request.request_id)

    def cancel(self, request_id: str) -> None:
        """End a request in any state, a held one too. Idempotent."""
        request = self.requests.get(request_id)
        if request is not None:
            self.end(request, RequestCancelled(request_id))

    def fail(self, request_id: str, error: EngineError) -> None:
        """End a request with an error. Idempotent."""
        request = self.requests.get(request_id)
        if request is not None:
            self.end(request, RequestFailed(request_id, error))

    @property
    def num_uncomputed_tokens(self) -> int:
        """Tokens of waiting and running requests whose KV is to be computed here."""
        return self.queue.num_tokens + sum(request.num_uncomputed_tokens for request in self.running)

    def check_invariants(self) -> None:
        """Raise AssertionError unless requests, lists and blocks agree with each other."""
        self._kv.check_invariants()
        by_status = {
            status: [r for r in self.requests.values() if r.status is status] for status in RequestStatus
        }
        waiting = by_status[RequestStatus.WAITING] + by_status[RequestStatus.QUEUED]
        assert {r.request_id for r in self.queue} == {r.request_id for r in waiting}, (
            "queue and status differ"
        )
        assert {r.request_id for r in self.running} == {
            r.request_id for r in by_status[RequestStatus.RUNNING]
        }, "batch and status differ"
        assert self.running.num_reserved == len(by_status[RequestStatus.RESERVED]), "reservations miscounted"
        assert self.running.num_places >= 0, "the batch is too large"
        assert self.queue.num_tokens == sum(r.num_tokens for r in by_status[RequestStatus.WAITING])
        for request in self.requests.values():
            assert bool(request.block_ids) == (
                request.status not in (RequestStatus.WAITING, RequestStatus.QUEUED)
            )
