"""The engine of one worker: a thread that owns scheduler, blocks and device.

Other threads hand it commands and get events; nothing is shared but the inbox.
The thread sleeps while no request can run.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial

from engine.config import EngineConfig
from engine.errors import EngineStoppedError, InvalidRequestError, QueueFullError, UnknownRequestError
from engine.events import StepEvents
from engine.kv.block_events import BlockJournal
from engine.kv.host_tier import slots_in
from engine.kv.layout import KVLayout
from engine.loop import EngineLoop
from engine.request import Request, RequestStatus
from engine.scheduler.scheduler import Scheduler
from engine.stats import EngineStats
from engine.step import Runner
from engine.validation import Limits

_log = logging.getLogger(__name__)

# Nothing is prepared between two requests that follow each other.
QUIET_S = 0.5
_PAUSE_S = 0.01


class Engine:
    """Owns the engine thread; every public method may be called from any thread and returns at once."""

    def __init__(
        self,
        config: EngineConfig,
        runner: Runner,
        layout: KVLayout,
        num_blocks: int,
        vocab_size: int,
        context_length: int,
        eos_token_ids: frozenset[int],
        on_events: Callable[[StepEvents], None],
        *,
        first_block: int = 0,
    ) -> None:
        """Put the parts together; nothing runs before `start`.

        Args:
            num_blocks: blocks of the pool, of each cache group.
            context_length: most tokens of a request, prompt and output.
            on_events: called on the engine thread, never with no events. It must return quickly;
                if it raises, the engine stops as after a bug of its own.
            first_block: id of the first of the blocks; those before are other workers'.
        """
        self._config = config
        self._limits = Limits(vocab_size, context_length, layout.groups, num_blocks)
        scheduler = Scheduler(
            config,
            layout.groups,
            num_blocks,
            context_length,
            eos_token_ids,
            first_block=first_block,
            host_slots=slots_in(config.swap_bytes, config.host_cache_bytes, layout.groups),
        )
        self._loop = EngineLoop(scheduler, runner, self._publish, config.ahead, config.late)
        self._on_events = on_events
        self._thread = threading.Thread(target=self._main, name="engine", daemon=True)
        # Guards everything below.
        self._wake = threading.Condition()
        self._inbox: deque[Callable[[], None]] = deque()
        self._live: set[str] = set()
        self._num_arrivals = 0
        self._num_new = 0
        self._num_queued = 0
        self._stopping = False
        self._stopped: EngineStoppedError | None = None
        self._stats = scheduler.stats()

    def start(self) -> None:
        """Start the thread; once."""
        self._thread.start()

    def stop(self) -> None:
        """Fail what is left with EngineStoppedError, free everything and join the thread. Idempotent."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        if self._thread.ident is None:
            self._shut_down(EngineStoppedError("the engine was stopped before it started"))
        else:
            self._thread.join()

    @property
    def healthy(self) -> bool:
        """Whether the thread runs and takes requests."""
        return self._thread.is_alive() and self._stopped is None

    def submit(self, request: Request) -> None:
        """Queue a request whose prompt is computed here.

        Raises:
            InvalidRequestError: a field is out of range, or the id is in use.
            OutOfBlocksError: it could never fit the pool.
            QueueFullError: max_queue requests wait already.
            EngineStoppedError: the engine does not run any more.
        """
        self._accept(request, RequestStatus.WAITING)

    def reserve(self, request: Request) -> None:
        """Queue a request for the blocks of its tokens and the next one; ReservationGranted follows.

        Another worker writes the KV into them, then comes `commit`. Raises as `submit` does.
        """
        if request.hold_blocks:
            raise InvalidRequestError("hold_blocks", "a reservation frees its blocks when it ends")
        self._accept(request, RequestStatus.QUEUED)

    def commit(self, request_id: str, first_token: int) -> None:
        """Let a granted reservation join the batch: the KV of all its tokens is in place.

        Appends `first_token`. If that ends the answer, RequestCancelled follows; otherwise
        TokenSampled for each further token.

        Raises:
            UnknownRequestError: it ended already (events crossed), or never was.
        """
        self._tell_of_live(
            request_id, partial(self._loop.scheduler.commit_reservation, request_id, first_token)
        )

    def compute(self, request_id: str) -> None:
        """Let a granted reservation join the batch as a prompt that is computed here, in its own blocks.

        TokenSampled follows for the first token and each further one. Make sure first that no
        other worker still writes into the blocks.

        Raises:
            UnknownRequestError: it ended already (events crossed), or never was.
        """
        self._tell_of_live(request_id, partial(self._loop.scheduler.compute_reservation, request_id))

    def cancel(self, request_id: str) -> None:
        """End a request in any state and give its blocks back; RequestCancelled follows. Idempotent.

        Make sure first that no other worker still writes into a reservation's blocks, or
        reads those of a held request.
        """
        with self._wake:
            if request_id in self._live and self._stopped is None:
                self._tell(partial(self._loop.scheduler.cancel, request_id))

    def stats(self) -> EngineStats:
        """Return the picture taken at the end of the last step."""
        return self._stats

    @property
    def block_journal(self) -> BlockJournal:
        """What the prefix cache gained and lost."""
        return self._loop.scheduler.block_journal

    def check_invariants(self) -> None:
        """Let the engine thread check itself, and wait for the result.

        Raises:
            AssertionError: blocks, lists and requests do not agree.
        """
        check = self._loop.scheduler.check_invariants
        answer: Future[None] = Future()
        with self._wake:
            asks = self.healthy and threading.current_thread() is not self._thread
            if asks:
                self._tell(partial(_answer, check, answer))
        if asks:
            answer.result()
        else:
            check()

    def _accept(self, request: Request, status: RequestStatus) -> None:
        self._limits.check(request)
        with self._wake:
            if self._stopped is not None or self._stopping:
                raise self._stopped or EngineStoppedError("the engine is stopping")
            if request.request_id in self._live:
                raise InvalidRequestError("request_id", f"{request.request_id!r} is in use")
            if self._num_queued + self._num_new >= self._config.max_queue:
                raise QueueFullError(f"max_queue: {self._config.max_queue} requests wait already")
            self._num_arrivals += 1
            request.arrival = self._num_arrivals
            request.status = status
            self._live.add(request.request_id)
            self._num_new += 1
            self._tell(partial(self._loop.scheduler.add, request))

    def _tell_of_live(self, request_id: str, command: Callable[[], None]) -> None:
        with self._wake:
            if request_id not in self._live or self._stopped is not None:
                raise UnknownRequestError(f"request_id: no request {request_id!r}")
            self._tell(command)

    def _tell(self, command: Callable[[], None]) -> None:
        """Hand a command to the engine thread; the caller holds the lock."""
        self._inbox.append(command)
        self._wake.notify()

    def _main(self) -> None:
        error = EngineStoppedError("the engine was stopped")
        try:
            patience: float | None = 0.0
            while (taken := self._take_commands(patience)) is not None:
                if self._loop.step():
                    patience = 0.0
                elif taken or patience == 0.0:
                    patience = QUIET_S
                else:
                    patience = _PAUSE_S if self._loop.prepare() else None
        except BaseException as bug:
            _log.exception("the engine died")
            error = EngineStoppedError(f"the engine died: {type(bug).__name__}: {bug}")
            error.__cause__ = bug
        self._shut_down(error)

    def _take_commands(self, patience_s: float | None) -> int | None:
        """Carry out what is in the inbox.

        Args:
            patience_s: for which to wait until there is something; None: for ever.
        Returns:
            How many there were; None: stop.
        """
        with self._wake:
            if patience_s != 0.0:
                self._wake.wait_for(lambda: self._inbox or self._stopping, patience_s)
            if self._stopping:
                return None
            num_commands = len(self._inbox)
            self._num_queued += self._num_new
            self._num_new = 0
        for _ in range(num_commands):
            self._inbox.popleft()()
        return num_commands

    def _publish(self, events: StepEvents, ended: Sequence[str], ends: bool) -> None:
        scheduler = self._loop.scheduler
        if ends:
            self._stats = scheduler.stats()
        with self._wake:
            self._num_queued = scheduler.num_queued
            self._live.difference_update(ended)
        if events.events:
            self._on_events(events)

    def _shut_down(self, error: EngineStoppedError) -> None:
        with self._wake:
            self._stopped = error
        try:
            # Nobody adds to the inbox any more; someone may wait for an answer in it.
            while self._inbox:
                self._inbox.popleft()()
            self._loop.fail_all(error)
        except Exception:
            _log.exception("the engine could not end its requests")


def _answer(check: Callable[[], None], answer: Future[None]) -> None:
    """Carry out a check for another thread."""
    try:
        check()
    except AssertionError as error:
        answer.set_exception(error)
    else:
        answer.set_result(None)
