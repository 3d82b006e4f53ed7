"""The engine of a worker, its KV memory, and the way of its events onto the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING

from engine.config import EngineConfig
from engine.events import StepEvents
from kvtransfer.region import CPU, Region
from kvtransfer.select import SHARED_MEMORY
from kvtransfer.shared_memory import SharedMemory, allocate_shared
from services.worker.bridge import LoopBridge

if TYPE_CHECKING:
    from engine.build import BuiltEngine


class EngineHost:
    """A running engine; made by `start_engine`, ended by `close`.

    Attributes:
        built: the engine and its facts.
        events: attach the handler of its StepEvents here.
        regions: its KV memory, one region a cache group.
        fingerprint: of its KV layout.
    """

    def __init__(
        self, built: BuiltEngine, events: LoopBridge[StepEvents], shared: dict[str, SharedMemory]
    ) -> None:
        self.built = built
        self.engine = built.engine
        self.events = events
        self.fingerprint = built.layout.fingerprint()
        self._shared = shared
        self.regions = [
            Region(
                group=group.name,
                block_bytes=group.block_bytes,
                num_blocks=built.num_blocks,
                device=CPU,
                fingerprint=self.fingerprint,
                memory=memory,
                shm_name=shared[group.name].name if group.name in shared else "",
            )
            for group, memory in zip(built.layout.groups, built.kv_memory, strict=True)
        ]

    def close(self) -> None:
        """Stop the engine's thread and unlink shared memory; after everything that reads the regions."""
        self.engine.stop()
        for memory in self._shared.values():
            memory.close()


async def start_engine(config: EngineConfig, transports: Sequence[str], worker_id: str) -> EngineHost:
    """Load the model and start the engine, off the event loop.

    Raises:
        ModelLoadError: names the file, or the architectures that are supported.
    """
    events: LoopBridge[StepEvents] = LoopBridge(asyncio.get_running_loop())
    return await asyncio.to_thread(_build, config, transports, worker_id, events)


def _build(
    config: EngineConfig, transports: Sequence[str], worker_id: str, events: LoopBridge[StepEvents]
) -> EngineHost:
    # Imported here because it brings torch: --help and usage errors need not wait for it.
    from engine.build import build_engine

    shared: dict[str, SharedMemory] = {}

    def allocate(group: str, num_bytes: int) -> memoryview:
        shared[group] = allocate_shared(f"{worker_id}-{group}", num_bytes)
        return shared[group].memory

    try:
        built = build_engine(config, events, allocate if SHARED_MEMORY in transports else None)
    except BaseException:
        for memory in shared.values():
            memory.close()
        raise
    built.engine.start()
    return EngineHost(built, events, shared)
