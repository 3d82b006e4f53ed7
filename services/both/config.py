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
