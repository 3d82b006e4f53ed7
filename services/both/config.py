"""Configuration of a co-located worker."""

from __future__ import annotations

from dataclasses import dataclass

from engine.config import EngineConfig
from services.common.server import ServerConfig
from services.decode.config import LeaseConfig
from services.worker.config import WorkerConfig


@dataclass(frozen=True, slots=True)
class BothConfig:
    """All settings of `baton serve both`."""

    server: ServerConfig
    worker: WorkerConfig
    engine: EngineConfig
    leases: LeaseConfig

    def __post_init__(self) -> None:
        """Check that the data plane is not open by mistake."""
        self.server.check_reach("kv_host", self.worker.kv_host or self.server.host)
