"""Opens transports to receivers ahead of the first request, and closes those of workers that left."""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Sequence

from baton.v1 import kv_pb2
from kvtransfer.errors import KvTransferError
from kvtransfer.peer import Peer
from kvtransfer.sender import Sender
from services.common.logs import log
from services.worker.metrics import WorkerMetrics

_Key = tuple[str, str]

_logger = logging.getLogger(__name__)


class PeerLinks:
    """Follows the list of receivers that the gateways send with each beat."""

    def __init__(self, sender: Sender, metrics: WorkerMetrics) -> None:
        self._sender = sender
        self._metrics = metrics
        self._listed: set[_Key] = set()
        self._opened: set[_Key] = set()
        self._refused: set[_Key] = set()
        self._tasks: dict[_Key, asyncio.Task[None]] = {}

    def update(self, receivers: Sequence[kv_pb2.KvPeer]) -> None:
        """Open new ones in the background; forget those that no gateway lists any more."""
        listed = {(peer.worker_id, peer.incarnation): peer for peer in receivers}
        # A link that a request opened is kept until its receiver was listed and then left.
        for key in self._listed - listed.keys():
            self._opened.discard(key)
            self._sender.forget(*key)
        self._listed = set(listed)
        self._refused &= self._listed
        for key in listed.keys() - self._opened - self._tasks.keys():
            task = asyncio.create_task(self._open_ahead(key, listed[key]))
            self._tasks[key] = task
            task.add_done_callback(functools.partial(self._forget_task, key))

    async def open(self, peer: Peer) -> None:
        """Open the link to a receiver, off the event loop, unless it is open.

        Raises:
            KvTransferError: see Sender.connect.
        """
        key = (peer.worker_id, peer.incarnation)
        if key not in self._opened:
            transport = await asyncio.to_thread(self._sender.connect, peer)
            refused = "; ".join(self._sender.refused(peer))
            self._opened.add(key)
            self._metrics.count_link(transport, is_fallback=bool(refused))
            level = logging.WARNING if refused else logging.INFO
            log(
                _logger,
                level,
                "link to receiver",
                receiver=key[0],
                transport=transport,
                fallback_from=refused,
            )

    async def close(self) -> None:
        """Wait for links that are being opened."""
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    def _forget_task(self, key: _Key, task: asyncio.Task[None]) -> None:
        del self._tasks[key]

    async def _open_ahead(self, key: _Key, message: kv_pb2.KvPeer) -> None:
        try:
            await self.open(Peer.from_proto(message))
        except KvTransferError as error:
            # The next beat tries again; one line in the log is enough.
            if key not in self._refused:
                self._refused.add(key)
                log(
                    _logger,
                    logging.ERROR,
                    "no link to receiver",
                    receiver=key[0],
                    incarnation=key[1],
                    error=str(error),
                )
