"""Puts a decode worker together."""

from __future__ import annotations

import asyncio
import time

from kvtransfer.events import Arrived, ReceiverEvent
from kvtransfer.receiver import Receiver
from services.common.server import ServerConfig
from services.decode.config import DecodeConfig, LeaseConfig
from services.decode.servicer import DecodeServicer
from services.worker.bridge import LoopBridge
from services.worker.config import WorkerConfig
from services.worker.engine_host import EngineHost
from services.worker.metrics import WorkerMetrics
from services.worker.runtime import Identity, Worker


def make_worker(config: DecodeConfig) -> Worker:
    """Bind the port; the rest comes with `start`.

    Raises:
        OSError: the port is taken.
    """

    def make_service(host: EngineHost, identity: Identity, metrics: WorkerMetrics) -> DecodeServicer:
        return make_servicer(host, identity, metrics, config.server, config.worker, config.leases)

    return Worker("decode", config.server, config.worker, config.engine, make_service)


def make_servicer(
    host: EngineHost,
    identity: Identity,
    metrics: WorkerMetrics,
    server: ServerConfig,
    worker: WorkerConfig,
    leases: LeaseConfig,
) -> DecodeServicer:
    """Make the service and its end of the data plane."""
    events: LoopBridge[ReceiverEvent] = LoopBridge(asyncio.get_running_loop())

    def on_event(event: ReceiverEvent) -> None:
        if not isinstance(event, Arrived):  # nobody here asks, and each would wake the event loop
            events.post(event, time.monotonic())

    receiver = Receiver(
        identity.worker_id,
        identity.incarnation,
        host.regions,
        bind=f"tcp://{worker.kv_host or server.host}:{worker.kv_port}",
        transports=worker.transports,
        on_event=on_event,
        on_committed=lambda event: events.at_once(event, time.monotonic()),
        advertise_host=server.public_host,
        curve=identity.curve,
    )
    return DecodeServicer(host, receiver, events, leases, metrics)
