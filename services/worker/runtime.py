"""A worker process from start to end.

    bind the port -> load the engine -> serve -> register -> ready line
    SIGTERM or SIGINT -> refuse new requests, tell the gateways -> wait for running ones
    -> leave the gateways -> stop
A second signal ends the process at once. An engine that dies, or a
vault that goes, ends the process with status 1.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from baton.v1 import kv_pb2, registry_pb2
from engine.config import EngineConfig
from engine.errors import EngineError
from kvtransfer.curve import CurveKeys
from kvtransfer.errors import KvTransferError
from services.common.errors import BatonError
from services.common.ids import default_worker_id, new_incarnation
from services.common.logs import log, setup_logs
from services.common.metrics import MetricsServer
from services.common.pauses import keep_pauses_short
from services.common.peer_access import require_peer
from services.common.server import GrpcServer, ServerConfig, StopSignals, allow_all, print_ready
from services.common.tracing import Off, setup_tracing, use_tracing
from services.worker.config import WorkerConfig
from services.worker.engine_host import EngineHost, start_engine
from services.worker.errors import translate
from services.worker.metrics import WorkerMetrics
from services.worker.registry import RegistryClient

HEALTH_INTERVAL_S = 0.5
STOP_GRACE_S = 1.0

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Identity:
    """Who this process is.

    Attributes:
        worker_id: stable name.
        incarnation: new at each start.
        curve: keys of its end of the data plane; None: it is not encrypted.
    """

    worker_id: str
    incarnation: str
    curve: CurveKeys | None = None


class WorkerService(Protocol):
    """What a role adds to a worker: its RPCs, and its end of the data plane."""

    @property
    def role(self) -> registry_pb2.WorkerRole:
        """What to register as."""

    @property
    def load(self) -> Callable[[], registry_pb2.WorkerLoad]:
        """What to report with each beat."""

    def add_to(self, server: GrpcServer) -> None:
        """Add the RPCs."""

    def kv_peer(self) -> kv_pb2.KvPeer | None:
        """How others reach its KV blocks; None: they do not."""

    def on_receivers(self, receivers: Sequence[kv_pb2.KvPeer]) -> None:
        """Hear of the receivers that gateways list."""

    def on_senders(self, public_keys: Sequence[str]) -> None:
        """Hear of the CURVE keys of the senders that gateways list."""

    def drain(self) -> None:
        """Refuse new requests."""

    async def idle(self) -> None:
        """Return when no request is left."""

    async def close(self) -> None:
        """End what is left; after it nothing reads or writes KV blocks."""


MakeService = Callable[[EngineHost, Identity, WorkerMetrics], WorkerService]


class Worker:
    """One worker that serves; `start` makes it ready, `stop` drains it.

    Args:
        make_service: makes the role's service on a loaded engine.
    Attributes:
        host: engine and memory, after `start`.
        service: the role's service, after `start`.
        server: bound on construction.
    """

    def __init__(
        self,
        role: str,
        server: ServerConfig,
        worker: WorkerConfig,
        engine: EngineConfig,
        make_service: MakeService,
    ) -> None:
        self._config = server
        self._worker = worker
        self._engine = engine
        self._make_service = make_service
        self.metrics = WorkerMetrics()
        self._is_serving = False
        certificate = server.peers.certificate
        self.server = GrpcServer(
            server.host,
            server.port,
            advertise_host=server.public_host,
            translate=translate,
            on_error=self.metrics.count_error,
            certificate=certificate,
            access=allow_all if certificate is None else require_peer("gateway"),
        )
        worker_id = worker.worker_id or default_worker_id(role, self.server.port)
        curve = CurveKeys.generate() if certificate is not None else None
        self.identity = Identity(worker_id, new_incarnation(), curve)
        self.metrics_address = ""
        self._metrics_server: MetricsServer | None = None

    async def start(self) -> None:
        """Load the model, serve, and begin to register.

        Raises:
            EngineError: the model cannot be used.
            KvTransferError: no memory, or the data plane cannot listen.
            BatonError, ValueError: the vault refuses, is not there, or there is no such GPU.
            OSError: the metrics port cannot be bound.
        """
        if self._config.metrics_port >= 0:
            self._metrics_server = MetricsServer(
                self.metrics.registry,
                self._config.host,
                self._config.metrics_port,
                self._config.peers.certificate,
                lambda: self._is_serving,
            )
            self.metrics_address = f"{self._config.public_host}:{self._metrics_server.port}"
        self.host = await start_engine(
            self._engine, self._worker, self.identity.worker_id, self.identity.incarnation
        )
        try:
            self.service = self._make_service(self.host, self.identity, self.metrics)
        except BaseException:
            await self.host.close()
            raise
        self.metrics.add_engine(self.host.engine.stats)
        self.service.add_to(self.server)
        await self.server.start()
        await self.server.set_serving(True)
        self._is_serving = True
        self._registry = RegistryClient(
            self._worker.gateways,
            self._info(),
            self.service.load,
            self.host.engine.block_journal,
            self.service.on_receivers,
            self.service.on_senders,
            self._config.peers.certificate,
        )
        self._registry.start()

    async def lost(self) -> str:
        """Return why the worker cannot go on, once it cannot: its engine died, or its vault is gone."""
        while not self.host.lost:
            await asyncio.sleep(HEALTH_INTERVAL_S)
        return self.host.lost

    async def stop(self, drain_s: float) -> None:
        """Drain for at most `drain_s` seconds, then end everything."""
        self._is_serving = False
        self.service.drain()
        self._registry.drain()
        await self.server.set_serving(False)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.service.idle(), drain_s)
        await self._registry.stop()
        await self.service.close()
        await self.server.stop(STOP_GRACE_S)
        await self.host.close()
        if self._metrics_server is not None:
            self._metrics_server.close()

    def _info(self) -> registry_pb2.WorkerInfo:
        built = self.host.built
        return registry_pb2.WorkerInfo(
            worker_id=self.identity.worker_id,
            incarnation=self.identity.incarnation,
            role=self.service.role,
            address=self.server.address,
            model=self._engine.model_name,
            fingerprint=self.host.fingerprint,
            num_blocks=built.num_blocks,
            block_size=built.config.block_size,
            context_length=built.context_length,
            max_step_tokens=built.config.max_step_tokens,
            device=self.host.device,
            kv_peer=self.service.kv_peer(),
            vocab_size=built.vocab_size,
            metrics_address=self.metrics_address,
            curve_public_key=self.identity.curve.public if self.identity.curve else "",
        )


async def run_worker(worker: Worker, drain_s: float, started_s: float) -> int:
    """Serve until a signal; returns the exit status.

    Args:
        started_s: time.monotonic() when the process began to work, for the ready line.
    """
    signals = StopSignals()
    try:
        await worker.start()
    except (EngineError, KvTransferError, BatonError, OSError, ValueError) as error:
        log(_logger, logging.CRITICAL, "cannot start", error=str(error), kind=type(error).__name__)
        return 1
    built = worker.host.built
    log(
        _logger,
        logging.INFO,
        "serving",
        address=worker.server.address,
        num_blocks=built.num_blocks,
        fingerprint=worker.host.fingerprint,
        **{f"load_{phase}_s": round(seconds, 3) for phase, seconds in built.load_seconds.items()},
    )
    keep_pauses_short()
    print_ready(
        address=worker.server.address,
        worker_id=worker.identity.worker_id,
        incarnation=worker.identity.incarnation,
        metrics_address=worker.metrics_address,
        num_blocks=built.num_blocks,
        start_s=round(time.monotonic() - started_s, 3),
    )
    asked = asyncio.create_task(signals.first.wait())
    lost = asyncio.create_task(worker.lost())
    await asyncio.wait([asked, lost], return_when=asyncio.FIRST_COMPLETED)
    status = 0
    if not asked.done():
        log(_logger, logging.CRITICAL, "leaving", error=lost.result())
        drain_s, status = 0.0, 1
    asked.cancel()
    lost.cancel()
    log(_logger, logging.INFO, "draining", timeout_s=drain_s)
    await worker.stop(drain_s)
    log(_logger, logging.INFO, "stopped")
    return status


def run_process(role: str, make_worker: Callable[[], Worker], server: ServerConfig) -> int:
    """Run a worker as this process; returns the exit status."""
    started_s = time.monotonic()
    setup_logs(role, server.log_level)

    async def run() -> int:
        try:
            worker = make_worker()
            setup_tracing(role, worker.identity.worker_id, server.traces)
        except (OSError, ValueError) as error:
            log(_logger, logging.CRITICAL, "cannot start", error=str(error))
            return 1
        return await run_worker(worker, server.drain_timeout_s, started_s)

    try:
        return asyncio.run(run())
    except KeyboardInterrupt:
        return 130
    finally:
        use_tracing(Off())
