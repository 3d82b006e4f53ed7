"""The engine of a worker, its KV memory, and the way of its events onto the event loop."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from engine.config import EngineConfig
from engine.events import StepEvents
from kvtransfer.region import Region
from kvtransfer.select import SHARED_MEMORY
from services.common.logs import log
from services.worker.bridge import LoopBridge
from services.worker.config import WorkerConfig
from services.worker.gpu import put_gpu_first
from services.worker.vault_lease import VaultLease

if TYPE_CHECKING:
    from engine.build import BuiltEngine
    from services.worker.memory import WorkerMemory

_logger = logging.getLogger(__name__)


class EngineHost:
    """A running engine; made by `start_engine`, ended by `close`.

    Attributes:
        built: the engine and its facts.
        events: attach the handler of its StepEvents here.
        regions: its KV memory, one region a cache group.
        fingerprint: of its KV layout.
        device: "cpu", or "cuda:<uuid>" where the memory can be shared.
    """

    def __init__(
        self,
        built: BuiltEngine,
        events: LoopBridge[StepEvents],
        memory: WorkerMemory,
        lease: VaultLease | None,
    ) -> None:
        from services.worker.memory import Place

        self.built = built
        self.engine = built.engine
        self.events = events
        self.fingerprint = built.layout.fingerprint()
        self._memory = memory
        self._lease = lease
        own = [Place("cpu", view) for view in built.kv_memory]
        places = [memory.places[g.name] for g in built.layout.groups] if memory.places else own
        self.regions = [
            Region(
                group=group.name,
                block_bytes=group.block_bytes,
                num_blocks=built.pool_blocks,
                device=place.device,
                fingerprint=self.fingerprint,
                memory=place.memory,
                shm_name=place.shm_name,
            )
            for group, place in zip(built.layout.groups, places, strict=True)
        ]
        self.device = self.regions[0].device

    @property
    def lost(self) -> str:
        """Why the engine cannot go on; empty: it can."""
        if not self.engine.healthy:
            return "the engine died"
        return "the vault is gone" if self._lease is not None and self._lease.ended.is_set() else ""

    async def close(self) -> None:
        """Stop the engine's thread and give up the memory; after everything that reads the regions."""
        await asyncio.to_thread(self.engine.stop)
        await asyncio.to_thread(self._memory.close)
        if self._lease is not None:
            await self._lease.close()


async def start_engine(
    config: EngineConfig, worker: WorkerConfig, worker_id: str, incarnation: str
) -> EngineHost:
    """Load the model and start the engine, off the event loop.

    Raises:
        EngineError: the model or its settings cannot be used.
        KvTransferError: no memory, or the vault's cannot be mapped.
        BatonError, ValueError: the vault refuses, is not there, or there is no such GPU.
    """
    events: LoopBridge[StepEvents] = LoopBridge(asyncio.get_running_loop())
    if config.backend == "cuda":
        put_gpu_first(worker.gpu)
    if not worker.vault:
        return await asyncio.to_thread(_build, config, worker, worker_id, events, None)
    fingerprint = await asyncio.to_thread(_fingerprint, config)
    lease = await VaultLease.attach(
        worker.vault, worker.vault_token_file, worker_id, incarnation, fingerprint, config.kv_bytes
    )
    log(
        _logger,
        logging.INFO,
        "attached to the vault",
        vault=worker.vault,
        weights_bytes=lease.weights.num_bytes if lease.weights is not None else 0,
        first_block=lease.first_block,
        num_blocks=lease.num_blocks,
    )
    try:
        return await asyncio.to_thread(_build, config, worker, worker_id, events, lease)
    except BaseException:
        await lease.close()
        raise


# The engine is imported where it is used because it brings torch: --help and usage errors need not
# wait for it.


def _fingerprint(config: EngineConfig) -> str:
    from engine.build import read_layout

    return read_layout(config).fingerprint()


def _build(
    config: EngineConfig,
    worker: WorkerConfig,
    worker_id: str,
    events: LoopBridge[StepEvents],
    lease: VaultLease | None,
) -> EngineHost:
    from engine.build import build_engine

    memory = _memory(config, worker, worker_id, lease)
    try:
        built = build_engine(config, events, memory.allocate, memory.borrowed)
        host = EngineHost(built, events, memory, lease)
    except BaseException:
        memory.close()
        raise
    built.engine.start()
    return host


def _memory(
    config: EngineConfig, worker: WorkerConfig, worker_id: str, lease: VaultLease | None
) -> WorkerMemory:
    from services.worker.memory import GpuMemory, PrivateMemory, SharedHostMemory, VaultMemory

    if lease is not None:
        return VaultMemory(lease)
    if config.backend == "cuda":
        # Also without cuda_ipc: zmq_tcp stages blocks from here.
        return GpuMemory()
    return SharedHostMemory(worker_id) if SHARED_MEMORY in worker.transports else PrivateMemory()
