"""Configuration of a worker that decodes: a decode worker, or a co-located one."""

from __future__ import annotations

from dataclasses import dataclass

from engine.config import EngineConfig
from services.common.server import ServerConfig
from services.worker.config import WorkerConfig


@dataclass(frozen=True, slots=True)
class LeaseConfig:
    """How long a decode worker waits for others.

    Attributes:
        lease_s: a reservation lapses this many seconds after its prefill worker's last sign of life.
        stream_grace_s: a gateway's requests are cancelled this many seconds after its stream broke.
        slow_gateway_s: a stream whose gateway takes no message for so many seconds is cut.
    """

    lease_s: float = 10.0
    stream_grace_s: float = 10.0
    slow_gateway_s: float = 10.0

    def __post_init__(self) -> None:
        """Check ranges."""
        for name in ("lease_s", "stream_grace_s", "slow_gateway_s"):
            if not 0.01 <= getattr(self, name) <= 3600:
                raise ValueError(f"{name}: must be from 0.01 to 3600 seconds, got {getattr(self, name)}")


@dataclass(frozen=True, slots=True)
class DecodeConfig:
    """All settings of `baton serve decode`, and of `baton serve both`."""

    server: ServerConfig
    worker: WorkerConfig
    engine: EngineConfig
    leases: LeaseConfig

    def __post_init__(self) -> None:
        """Check that the data plane is not open by mistake."""
        self.server.check_reach("kv_host", self.worker.kv_host or self.server.host)
