"""VaultService: a worker holds its share for as long as its call is open.

The life of a worker here:

    1 Attach    token and layout are checked; a share of the pool is cut, or waited for while one that was
                given back still settles
    2 grant     where the memory is, and which blocks are the worker's
    3 silence   the open call is the lease: the kernel ends it when the worker dies, however it dies
    4 the end   the share settles, then it is free. What the worker had mapped is its own to unmap
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator

import grpc

from baton.v1 import vault_pb2, vault_pb2_grpc
from services.common.errors import BatonError, ErrorReason
from services.common.logs import log
from services.vault.holdings import Holdings
from services.vault.leases import Share, Shares
from services.worker.vault_token import METADATA_KEY, is_token

Context = grpc.aio.ServicerContext[vault_pb2.AttachRequest, vault_pb2.AttachResponse]

_logger = logging.getLogger(__name__)


class VaultServicer(vault_pb2_grpc.VaultServiceServicer):
    """Serves VaultService.

    Attributes:
        num_attached: calls so far that were granted a share.
    """

    def __init__(self, holdings: Holdings, shares: Shares, token: str) -> None:
        self._holdings = holdings
        self._shares = shares
        self._token = token
        self._closing = asyncio.Event()
        self._left = asyncio.Event()
        self.num_attached = 0

    async def Attach(  # noqa: N802
        self, request: vault_pb2.AttachRequest, context: Context
    ) -> AsyncGenerator[vault_pb2.AttachResponse, None]:
        """Give a share until the call ends; see vault.proto."""
        self._check_token(context)
        for field in ("worker_id", "incarnation", "fingerprint"):
            if not getattr(request, field):
                raise _invalid(field, "must not be empty")
        if request.fingerprint != self._holdings.fingerprint:
            raise BatonError(
                ErrorReason.LAYOUT_MISMATCH,
                f"fingerprint: {request.fingerprint!r} of worker {request.worker_id!r} is not "
                f"{self._holdings.fingerprint!r}, which the vault has: another model, dtype or block size",
            )
        share = await self._take(request)
        log(_logger, logging.INFO, "attached", worker=share.owner, blocks=str(share.blocks))
        self.num_attached += 1
        try:
            yield self._holdings.grant(share)
            await self._closing.wait()
            yield vault_pb2.AttachResponse(closing=True)
            await asyncio.Event().wait()  # until the worker leaves, or `close` has waited long enough
        finally:
            self._shares.give_back(share)
            self._left.set()
            log(_logger, logging.INFO, "detached", worker=share.owner, blocks=str(share.blocks))

    async def close(self, timeout_s: float) -> bool:
        """Ask the workers to leave, and wait; returns whether all have left."""
        self._closing.set()
        try:
            async with asyncio.timeout(timeout_s):
                while self._shares.held:
                    self._left.clear()
                    await self._left.wait()
        except TimeoutError:
            return False
        return True

    async def _take(self, request: vault_pb2.AttachRequest) -> Share:
        num_blocks = request.kv_bytes // self._holdings.block_bytes
        if request.kv_bytes and not num_blocks:
            message = f"{request.kv_bytes} holds no block of {self._holdings.block_bytes} bytes"
            raise _invalid("kv_bytes", message)
        while not self._closing.is_set():
            share = self._shares.take(f"{request.worker_id}/{request.incarnation}", num_blocks)
            if isinstance(share, Share):
                return share
            await asyncio.sleep(share)
        raise BatonError(ErrorReason.DRAINING, "the vault is shutting down")

    def _check_token(self, context: Context) -> None:
        metadata = context.invocation_metadata() or ()
        shown = next((value for key, value in metadata if key == METADATA_KEY), None)
        if not is_token(shown, self._token):
            raise BatonError(
                ErrorReason.UNAUTHENTICATED, f"{METADATA_KEY}: missing, or not this vault's token"
            )


def _invalid(field: str, message: str) -> BatonError:
    return BatonError(ErrorReason.INVALID_ARGUMENT, f"{field}: {message}", field=field)
