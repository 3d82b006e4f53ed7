"""Admits requests and makes their sessions: what both public APIs stand on."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

from services.gateway.access import Callers
from services.gateway.admission import Admission
from services.gateway.config import GatewayConfig
from services.gateway.ledger import Ledger
from services.gateway.metrics import GatewayMetrics
from services.gateway.model import ServedModel
from services.gateway.registry import Registry
from services.gateway.request import Request
from services.gateway.session.cluster import Cluster
from services.gateway.session.recovery import Recovery
from services.gateway.session.session import Session
from services.gateway.session.trace import RequestTrace
from services.gateway.timeline import Timelines


class Generator:
    """The gateway without its servers.

    Must be made inside the event loop that it serves.

    Raises:
        ValueError: the model's directory cannot be used.
    """

    def __init__(self, config: GatewayConfig) -> None:
        self.config = config
        self.registry = Registry(config.served_name, config.beat_interval_ms / 1000, time.monotonic)
        self.model = ServedModel(config.served_name, config.model_dir, self.registry)
        self.callers = Callers(config.access.keys_path)
        self.cluster = Cluster(
            self.registry,
            config.expected_output_tokens,
            config.local_prefill_tokens,
            config.peers.certificate,
        )
        ledger = None
        if config.limits_fd >= 0:
            ledger = Ledger(config.limits_fd, config.processes, config.process_index)
        self.admission = Admission(
            config.limits,
            config.expected_output_tokens,
            ledger=ledger,
            backlog_s=self.cluster.backlog_s,
        )
        self.metrics = GatewayMetrics(self.registry, self.admission)
        self.timelines = Timelines()
        self._background = [
            asyncio.create_task(self.registry.run_sweeps()),
            asyncio.create_task(self.callers.watch()),
        ]

    def start(self, requests: Sequence[Request], num_samples: int = 1) -> list[Session]:
        """Admit requests, all or none; the caller closes each session.

        Args:
            num_samples: so many consecutive ones have the same prompt; the first of them computes it.
        Raises:
            BatonError: QUEUE_FULL, RATE_LIMITED, DRAINING.
        """
        tickets = self.admission.admit(requests)
        sessions = [
            Session(
                request,
                self.model,
                ticket,
                self.cluster,
                Recovery(self.registry, self.config.max_retries, self.config.worker_wait_s, request.deadline),
                self.metrics,
                RequestTrace(request, self.timelines),
            )
            for request, ticket in zip(requests, tickets, strict=True)
        ]
        if num_samples > 1:
            block_size = self.model.limits().block_size
            for i, session in enumerate(sessions):
                if i % num_samples and _shares_prompt(session.request, block_size):
                    session.follow(sessions[i - i % num_samples])
        return sessions

    async def drain(self, timeout_s: float) -> None:
        """Refuse new requests and wait until those in flight have ended, or the time is up."""
        self.admission.is_draining = True
        deadline = time.monotonic() + timeout_s
        while self.admission.in_flight and time.monotonic() < deadline:
            await asyncio.sleep(0.05)

    async def close(self) -> None:
        """Free what is left at the workers and close all connections."""
        for task in self._background:
            task.cancel()
        await asyncio.wait(self._background)
        await self.cluster.close()


def _shares_prompt(request: Request, block_size: int) -> bool:
    """Whether what another request computed is of use: full blocks are, and log-probabilities of a prompt."""
    return request.num_prompt_tokens > block_size or request.sampling.HasField("prompt_logprobs")
