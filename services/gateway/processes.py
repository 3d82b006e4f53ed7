"""Several gateway processes that share their public ports; this one starts them and serves nobody.

The kernel spreads new connections over those that listen (SO_REUSEPORT). All state is a
request's own, so it does not matter which one a client reaches; workers register with
each, at a port of its own. One that dies is started again: its clients lose their
streams, the others' do not. Limits are counted together, in a Ledger: what one had that
died counts no more.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import socket
import sys
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from services.common.logs import log
from services.common.server import print_ready
from services.gateway.config import GatewayConfig
from services.gateway.ledger import Ledger

_RESTART_S = 1.0
_KILL_AFTER_S = 10.0

_logger = logging.getLogger(__name__)


class Processes:
    """The processes of one gateway.

    Args:
        argv: flags of the gateway, as given.
    Raises:
        OSError: a public port is taken by something else.
    """

    def __init__(self, config: GatewayConfig, argv: Sequence[str]) -> None:
        self._config = config
        self._argv = list(argv)
        self._held: list[socket.socket] = []
        self._children: dict[int, asyncio.subprocess.Process] = {}
        self._ready: dict[int, dict[str, str]] = {}
        self._is_stopping = False
        try:
            # Bound but not listening: gets no connection, and keeps a free port free until children have it.
            self._grpc_port = self._hold(config.grpc_port)
            self._http_port = self._hold(config.http_port)
        except OSError:
            self._release()
            raise
        self._limits_fd = Ledger.create(config.processes)
        self._ledger = Ledger(self._limits_fd, config.processes)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._release()
        os.close(self._limits_fd)

    async def run(self, stop: asyncio.Event) -> int:
        """Run all until `stop`; returns the exit status."""
        tasks = [asyncio.create_task(self._keep(index)) for index in range(self._config.processes)]
        stopping = asyncio.create_task(stop.wait())
        await asyncio.wait([stopping, *tasks], return_when=asyncio.FIRST_COMPLETED)
        status = 0 if stopping.done() else 1  # one could not start at all
        stopping.cancel()
        await self._stop()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return status

    async def _keep(self, index: int) -> None:
        """Run one process, again and again; returns if it ends before it was ready."""
        while not self._is_stopping:
            child = self._children[index] = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "services.gateway.main",
                *self._flags(index),
                stdout=asyncio.subprocess.PIPE,
                pass_fds=[self._limits_fd],
            )
            was_ready = await self._read(index, child)
            status = await child.wait()
            self._ledger.clear(index)
            if self._is_stopping or not was_ready:
                return
            log(
                _logger,
                logging.ERROR,
                "a gateway process died; starting it again",
                index=index,
                status=status,
            )
            await asyncio.sleep(_RESTART_S)

    async def _read(self, index: int, child: asyncio.subprocess.Process) -> bool:
        assert child.stdout is not None
        is_ready = False
        async for line in child.stdout:
            facts = json.loads(line)
            if facts.get("event") != "ready":
                continue
            is_first = index not in self._ready
            is_ready = True
            self._ready[index] = facts
            if is_first and len(self._ready) == self._config.processes:
                self._announce()
        return is_ready

    def _announce(self) -> None:
        first = self._ready[0]
        registries = (self._ready[index]["registry_address"] for index in sorted(self._ready))
        print_ready(
            address=first["address"],
            http_address=first["http_address"],
            registry_address=",".join(registries),
            model=first["model"],
        )

    async def _stop(self) -> None:
        self._is_stopping = True
        running = [child for child in self._children.values() if child.returncode is None]
        for child in running:
            with contextlib.suppress(ProcessLookupError):
                child.send_signal(signal.SIGTERM)
        waits = [asyncio.create_task(child.wait()) for child in running]
        if waits:
            await asyncio.wait(waits, timeout=self._config.drain_timeout_s + _KILL_AFTER_S)
        for child in running:
            if child.returncode is None:
                child.kill()
                await child.wait()

    def _flags(self, index: int) -> list[str]:
        config = self._config
        flags = [*self._argv, "--process-index", str(index)]
        flags += ["--grpc-port", str(self._grpc_port), "--http-port", str(self._http_port)]
        flags += ["--limits-fd", str(self._limits_fd)]
        for name, port in (("registry", config.registry_port), ("metrics", config.metrics_port)):
            if port > 0:
                flags += [f"--{name}-port", str(port + index)]
        return flags

    def _hold(self, port: int) -> int:
        host = self._config.host
        held = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
        self._held.append(held)
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        try:
            held.bind((host.strip("[]"), port))
        except OSError as error:
            raise OSError(f"cannot listen on {host}:{port}: {error.strerror}") from error
        return int(held.getsockname()[1])

    def _release(self) -> None:
        for held in self._held:
            held.close()
        self._held.clear()
