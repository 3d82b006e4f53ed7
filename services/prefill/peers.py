"""Opens transports to receivers ahead of the first request, and closes those of workers that left."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

from baton.v1 import kv_pb2
from kvtransfer.errors import KvTransferError
from kvtransfer.peer import Peer
from kvtransfer.sender import Sender
from services.common.logs import log

_logger = logging.getLogger(__name__)


class PeerLinks:
    """Follows the list of receivers that the gateways send with each beat."""

    def __init__(self, sender: Sender) -> None:
        self._sender = sender
        self._known: set[tuple[str, str]] = set()
        self._refused: set[tuple[str, str]] = set()
        self._opening: set[asyncio.Task[None]] = set()

    def update(self, receivers: Sequence[kv_pb2.KvPeer]) -> None:
        """Open new ones in the background; forget those that no gateway lists any more."""
        listed = {(peer.worker_id, peer.incarnation): peer for peer in receivers}
        for key in self._known - listed.keys():
            self._known.discard(key)
            self._sender.forget(*key)
        self._refused &= listed.keys()
        for key in listed.keys() - self._known:
            self._known.add(key)
            task = asyncio.create_task(self._open(key, listed[key]))
            self._opening.add(task)
            task.add_done_callback(self._opening.discard)

    async def close(self) -> None:
        """Wait for links that are being opened."""
        await asyncio.gather(*self._opening, return_exceptions=True)

    async def _open(self, key: tuple[str, str], message: kv_pb2.KvPeer) -> None:
        try:
            transport = await asyncio.to_thread(self._sender.connect, Peer.from_proto(message))
        except KvTransferError as error:
            # The next beat tries again; one line in the log is enough.
            self._known.discard(key)
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
        else:
            log(_logger, logging.INFO, "link to receiver", receiver=key[0], transport=transport)
