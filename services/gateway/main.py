"""The gateway's process: `python -m services.gateway.main`, or `baton serve gateway`."""

from __future__ import annotations

import asyncio
import signal
import socket
import sys

import uvloop

from services.common.config import parse_config
from services.common.logs import setup_logs
from services.common.pauses import keep_pauses_short
from services.common.server import StopSignals, print_ready
from services.common.tracing import Off, setup_tracing, use_tracing
from services.gateway.app import Gateway
from services.gateway.config import GatewayConfig
from services.gateway.processes import Processes


def main(argv: list[str]) -> int:
    """Serve until SIGTERM or SIGINT.

    Returns:
        0 after a clean stop; 1 if the model cannot be used or a port cannot be bound.
    """
    config = parse_config(
        GatewayConfig, "gateway", argv, description="Public APIs, routing and sessions of a Baton cluster."
    )
    setup_logs("gateway", config.log_level)
    try:
        if config.processes > 1 and config.process_index < 0:
            return asyncio.run(_supervise(config, argv))
        uvloop.run(_serve(config))
        return 0
    except (OSError, ValueError) as error:
        print(f"baton serve gateway: {error}", file=sys.stderr)
        return 1


async def _serve(config: GatewayConfig) -> None:
    setup_tracing("gateway", socket.gethostname(), config.traces)
    signals = StopSignals()
    gateway = Gateway(config)
    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, gateway.generator.callers.reload)
    await gateway.start()
    keep_pauses_short()
    print_ready(
        address=gateway.grpc_address,
        http_address=gateway.http_address,
        registry_address=gateway.registry_address,
        model=config.served_name,
    )
    await signals.first.wait()
    await gateway.stop()
    use_tracing(Off())


async def _supervise(config: GatewayConfig, argv: list[str]) -> int:
    signals = StopSignals()
    with Processes(config, argv) as processes:
        return await processes.run(signals.first)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
