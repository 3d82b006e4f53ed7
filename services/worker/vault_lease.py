"""A worker's hold on a vault: the open call is the lease."""

from __future__ import annotations

import asyncio

import grpc

from baton.v1 import vault_pb2, vault_pb2_grpc
from kvtransfer.peer import region_from_proto
from kvtransfer.region import RegionFacts
from services.common.status import parse_status
from services.worker.vault_token import METADATA_KEY, read_token, token_path

_ATTACH_TIMEOUT_S = 60.0


class VaultLease:
    """Made by `attach`; gone with `close`, or with the vault.

    Attributes:
        pool: the vault's KV memory, one entry a cache group.
        weights: its weights; None: load them here.
        first_block, num_blocks: this worker's share.
        ended: set when the vault closes, or is gone: its memory must not be used any more.
    """

    def __init__(
        self,
        channel: grpc.aio.Channel,
        call: grpc.aio.UnaryStreamCall[vault_pb2.AttachRequest, vault_pb2.AttachResponse],
        grant: vault_pb2.AttachResponse,
    ) -> None:
        self.pool: tuple[RegionFacts, ...] = tuple(region_from_proto(region) for region in grant.pool)
        self.weights = region_from_proto(grant.weights) if grant.HasField("weights") else None
        self.first_block, self.num_blocks = grant.first_block, grant.num_blocks
        self.ended = asyncio.Event()
        self._channel = channel
        self._call = call
        self._watch = asyncio.create_task(self._wait_for_the_end())

    @classmethod
    async def attach(
        cls, socket: str, token_file: str, worker_id: str, incarnation: str, fingerprint: str, kv_bytes: int
    ) -> VaultLease:
        """Ask for a share, and wait for it.

        Raises:
            BatonError: refused, with the vault's reason; or nobody listens.
            ValueError: the token cannot be read.
        """
        token = read_token(token_path(socket, token_file))
        channel = grpc.aio.insecure_channel(f"unix:{socket}")
        call = vault_pb2_grpc.VaultServiceStub(channel).Attach(
            vault_pb2.AttachRequest(
                worker_id=worker_id, incarnation=incarnation, fingerprint=fingerprint, kv_bytes=kv_bytes
            ),
            metadata=((METADATA_KEY, token),),
        )
        try:
            async with asyncio.timeout(_ATTACH_TIMEOUT_S):
                grant = await call.read()
            if not isinstance(grant, vault_pb2.AttachResponse):
                raise grpc.aio.AioRpcError(
                    await call.code(),
                    await call.initial_metadata(),
                    await call.trailing_metadata(),
                    await call.details(),
                )
        except grpc.aio.AioRpcError as error:
            await channel.close()
            raise parse_status(error) from error
        except BaseException:
            await channel.close()
            raise
        return cls(channel, call, grant)

    async def close(self) -> None:
        """Give the share back; nothing may use the memory any more."""
        self._watch.cancel()
        self._call.cancel()
        await self._channel.close()

    async def _wait_for_the_end(self) -> None:
        try:
            await self._call.read()  # closing, or the end of the stream
        except grpc.aio.AioRpcError:
            pass
        finally:
            self.ended.set()
