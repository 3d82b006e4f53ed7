"""A vault from start to end.

    load the weights, once -> serve the socket -> ready line
    SIGTERM or SIGINT -> ask the workers to leave -> wait -> free the memory
A worker that dies changes nothing but its share.
"""

from __future__ import annotations

import asyncio
import logging
import time

from engine.errors import EngineError
from kvtransfer.errors import KvTransferError
from services.common.logs import log
from services.common.metrics import MetricsServer
from services.common.pauses import keep_pauses_short
from services.common.server import StopSignals, print_ready
from services.vault.config import VaultConfig
from services.vault.holdings import Holdings
from services.vault.leases import Shares
from services.vault.metrics import make_registry
from services.vault.server import VaultServer
from services.vault.servicer import VaultServicer
from services.worker.gpu import put_gpu_first
from services.worker.vault_token import make_token, token_path

_logger = logging.getLogger(__name__)


class Vault:
    """Memory and its socket; `start`, then `stop`.

    Attributes:
        holdings, shares: after `start`.
        metrics_address: "host:port"; empty: none.
    """

    def __init__(self, config: VaultConfig) -> None:
        self._config = config
        self._metrics: MetricsServer | None = None
        self.metrics_address = ""

    async def start(self) -> None:
        """Load the weights and serve.

        Raises:
            EngineError: the model cannot be used.
            KvTransferError: too little memory.
            OSError: the socket or the metrics port cannot be bound.
            ValueError: no such GPU, or the token cannot be used.
        """
        config = self._config
        token = make_token(token_path(config.socket, config.token_file))
        if config.backend == "cuda":
            put_gpu_first(config.gpu)
        self.holdings = await asyncio.to_thread(Holdings.load, config)
        try:
            self.shares = Shares(self.holdings.num_blocks, config.settle_s, time.monotonic)
            self._servicer = VaultServicer(self.holdings, self.shares, token)
            if config.metrics_port >= 0:
                registry = make_registry(self.holdings, self.shares, self._servicer)
                self._metrics = MetricsServer(registry, config.metrics_host, config.metrics_port)
                self.metrics_address = f"{config.metrics_host}:{self._metrics.port}"
            self._server = VaultServer(config.socket, self._servicer)
            await self._server.start()
        except BaseException:
            if self._metrics is not None:
                self._metrics.close()
            self.holdings.close()
            raise

    async def stop(self) -> None:
        """Ask the workers to leave, end the rest, and free the memory."""
        if not await self._servicer.close(self._config.drain_timeout_s):
            held = ", ".join(share.owner for share in self.shares.held)
            log(_logger, logging.WARNING, "workers did not leave in time", workers=held)
        await self._server.stop()
        if self._metrics is not None:
            self._metrics.close()
        await asyncio.to_thread(self.holdings.close)


async def run(config: VaultConfig) -> int:
    """Serve until a signal; returns the exit status."""
    started_s = time.monotonic()
    signals = StopSignals()
    vault = Vault(config)
    try:
        await vault.start()
    except (EngineError, KvTransferError, OSError, ValueError) as error:
        log(_logger, logging.CRITICAL, "cannot start", error=str(error), kind=type(error).__name__)
        return 1
    keep_pauses_short()
    print_ready(
        address=f"unix:{config.socket}",
        metrics_address=vault.metrics_address,
        num_blocks=vault.holdings.num_blocks,
        weights_bytes=vault.holdings.weights_bytes,
        load_s=round(vault.holdings.load_s, 3),
        start_s=round(time.monotonic() - started_s, 3),
    )
    await signals.first.wait()
    log(_logger, logging.INFO, "closing", timeout_s=config.drain_timeout_s)
    await vault.stop()
    log(_logger, logging.INFO, "stopped")
    return 0
