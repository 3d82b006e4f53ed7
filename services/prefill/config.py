"""Configuration of a prefill worker."""

from __future__ import annotations

from dataclasses import dataclass

from engine.config import EngineConfig
from services.common.server import ServerConfig
from services.worker.config import WorkerConfig


@dataclass(frozen=True, slots=True)
class PrefillConfig:
    """All settings of `baton serve prefill`."""

    server: ServerConfig
    worker: WorkerConfig
    engine: EngineConfig
