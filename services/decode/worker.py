"""Puts a decode worker together."""

from __future__ import annotations

import asyncio

from kvtransfer.events import ReceiverEvent
from kvtransfer.receiver import Receiver
from services.decode.config import DecodeConfig
from services.decode.servicer import DecodeServicer
from services.worker.bridge import LoopBridge
from services.worker.engine_host import EngineHost
from services.worker.metrics import WorkerMetrics
from services.worker.runtime import Identity, Worker


def make_worker(config: DecodeConfig) -> Worker:
    """Bind the port; the rest comes with `start`.

    Raises:
        OSError: the port is taken.
    """

    def make_service(host: EngineHost, identity: Identity, metrics: WorkerMetrics) -> DecodeServicer:
        events: LoopBridge[ReceiverEvent] = LoopBridge(asyncio.get_running_loop())
        receiver = Receiver(
            identity.worker_id,
            identity.incarnation,
            host.regions,
            bind=f"tcp://{config.worker.kv_host or config.server.host}:{config.worker.kv_port}",
            transports=config.worker.transports,
            on_event=events,
            advertise_host=config.server.public_host,
        )
        return DecodeServicer(host, receiver, events, config.leases, metrics)

    return Worker("decode", config.server, config.worker, config.engine, make_service)
