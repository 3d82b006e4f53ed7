"""Puts a prefill worker together."""

from __future__ import annotations

from kvtransfer.sender import Sender
from services.prefill.config import PrefillConfig
from services.prefill.servicer import PrefillServicer
from services.worker.config import WorkerConfig
from services.worker.engine_host import EngineHost
from services.worker.metrics import WorkerMetrics
from services.worker.runtime import Identity, Worker


def make_worker(config: PrefillConfig) -> Worker:
    """Bind the port; the rest comes with `start`.

    Raises:
        OSError: the port is taken.
    """

    def make_service(host: EngineHost, identity: Identity, metrics: WorkerMetrics) -> PrefillServicer:
        return make_servicer(host, identity, metrics, config.worker)

    return Worker("prefill", config.server, config.worker, config.engine, make_service)


def make_servicer(
    host: EngineHost, identity: Identity, metrics: WorkerMetrics, worker: WorkerConfig
) -> PrefillServicer:
    """Make the service and its end of the data plane."""
    sender = Sender(
        identity.worker_id,
        identity.incarnation,
        host.regions,
        transports=worker.transports,
        allow_fallback=worker.allow_fallback,
        curve=identity.curve,
    )
    return PrefillServicer(host, sender, metrics)
