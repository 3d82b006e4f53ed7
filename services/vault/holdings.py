"""What a vault holds: the pool and the weights of one model. It runs no model code."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass

from baton.v1 import vault_pb2
from engine.build import arena_bytes, fill_arena, num_blocks_in, read_layout
from engine.config import EngineConfig
from kvtransfer.peer import region_to_proto
from services.common.logs import log
from services.vault.config import VaultConfig
from services.vault.leases import Share
from services.vault.memory import ExportedMemory, allocate

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Holdings:
    """Memory, and what workers are told of it.

    Attributes:
        fingerprint: of the KV layout.
        num_blocks: blocks of the pool.
        block_bytes: bytes of one block over all cache groups.
        weights_bytes: 0 where workers load weights themselves.
        load_s: seconds that loading the weights took.
    """

    fingerprint: str
    num_blocks: int
    block_bytes: int
    weights_bytes: int
    load_s: float
    _memories: tuple[ExportedMemory, ...]
    _grant: vault_pb2.AttachResponse

    @classmethod
    def load(cls, config: VaultConfig) -> Holdings:
        """Allocate everything and load the weights, once.

        Raises:
            EngineError: the model or its settings cannot be used.
            KvTransferError: too little memory.
        """
        engine = EngineConfig(
            config.model,
            config.model_name,
            backend=config.backend,
            dtype=config.dtype,
            block_size=config.block_size,
            kv_bytes=config.kv_bytes,
        )
        layout = read_layout(engine)
        fingerprint = layout.fingerprint()
        block_bytes = sum(group.block_bytes for group in layout.groups)
        num_blocks = min(num_blocks_in(config.kv_bytes, group) for group in layout.groups)
        weights_bytes = arena_bytes(engine)
        memories: list[ExportedMemory] = []
        grant = vault_pb2.AttachResponse()
        try:
            started_s = time.monotonic()
            if weights_bytes:
                memory = allocate(config.backend, "weights", weights_bytes)
                memories.append(memory)
                arena = memory.arena()
                assert arena is not None, "weights in memory that cannot hold them"
                fill_arena(engine, arena)
                grant.weights.CopyFrom(
                    region_to_proto(memory.facts("weights", weights_bytes, 1, fingerprint))
                )
            load_s = time.monotonic() - started_s
            for group in layout.groups:
                memory = allocate(config.backend, group.name, num_blocks * group.block_bytes)
                memories.append(memory)
                facts = memory.facts(group.name, group.block_bytes, num_blocks, fingerprint)
                grant.pool.append(region_to_proto(facts))
        except BaseException:
            for memory in memories:
                memory.close()
            raise
        log(
            _logger,
            logging.INFO,
            "holding",
            weights_bytes=weights_bytes,
            weights_load_s=round(load_s, 3),
            num_blocks=num_blocks,
            kv_bytes=num_blocks * block_bytes,
            fingerprint=fingerprint,
        )
        return cls(fingerprint, num_blocks, block_bytes, weights_bytes, load_s, tuple(memories), grant)

    def grant(self, share: Share) -> vault_pb2.AttachResponse:
        """What a worker is told: where everything is, and which blocks are its own."""
        message = vault_pb2.AttachResponse(first_block=share.blocks.start, num_blocks=len(share.blocks))
        message.MergeFrom(self._grant)
        return message

    def close(self) -> None:
        """Give the memory up."""
        for memory in self._memories:
            memory.close()
