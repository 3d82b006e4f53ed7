"""Puts a co-located worker together."""

from __future__ import annotations

from services.both.servicer import BothServicer
from services.decode.config import DecodeConfig
from services.decode.worker import make_servicer as make_decode
from services.prefill.worker import make_servicer as make_prefill
from services.worker.engine_host import EngineHost
from services.worker.metrics import WorkerMetrics
from services.worker.runtime import Identity, Worker


def make_worker(config: DecodeConfig) -> Worker:
    """Bind the port; the rest comes with `start`.

    Raises:
        OSError: the port is taken.
    """

    def make_service(host: EngineHost, identity: Identity, metrics: WorkerMetrics) -> BothServicer:
        decode = make_decode(host, identity, metrics, config.server, config.worker, config.leases)
        prefill = make_prefill(host, identity, metrics, config.worker)
        return BothServicer(prefill, decode)

    return Worker("both", config.server, config.worker, config.engine, make_service)
