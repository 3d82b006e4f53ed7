"""Settings that prefill and decode workers share, beside those of the engine and the server."""

from __future__ import annotations

import re
from dataclasses import dataclass

from services.worker.gpu import check_gpu

TRANSPORTS = ("cuda_ipc", "shared_memory", "zmq_tcp")


@dataclass(frozen=True, slots=True)
class WorkerConfig:
    """Who the worker is, and how it is reached.

    Attributes:
        worker_id: stable name; empty: made of role, host name and port.
        gateway: address of a gateway's registry port, or of its gRPC port if it has none, to register with;
            several: repeat, or separate by commas; a gateway of four processes: host:50051-50054. Each
            address of a name is a gateway; names are looked up again every few seconds.
        transports: transports that may carry KV blocks, best first: cuda_ipc (GPU memory, one host),
            shared_memory (host memory, one host), zmq_tcp.
        allow_fallback: use a later transport when an earlier one that both sides name cannot be opened.
        vault: Unix socket of the vault whose pool and weights this worker uses; empty: it has its own.
        vault_token_file: file with that vault's token; empty: VAULT.token.
        gpu: GPU to run on, by its number; of those in CUDA_VISIBLE_DEVICES, if that is set.
        kv_host: address that the data plane listens on; empty: the same as host.
        kv_port: port of the data plane; 0: a free one.
    """

    worker_id: str = ""
    gateway: tuple[str, ...] = ()
    transports: tuple[str, ...] = TRANSPORTS
    allow_fallback: bool = True
    vault: str = ""
    vault_token_file: str = ""
    gpu: int = 0
    kv_host: str = ""
    kv_port: int = 0

    def __post_init__(self) -> None:
        """Check ranges."""
        unknown = [name for name in self.transports if name not in TRANSPORTS]
        if unknown or not self.transports:
            raise ValueError(f"transports: must be some of {', '.join(TRANSPORTS)}, got {unknown or 'none'}")
        check_gpu(self.gpu)
        for address in self.gateway:
            if not _addresses(address):
                raise ValueError(f"gateway: must be host:port or host:first-last, got {address!r}")
        if not 0 <= self.kv_port <= 65535:
            raise ValueError(f"kv_port: must be from 0 to 65535, got {self.kv_port}")

    @property
    def gateways(self) -> tuple[str, ...]:
        """Addresses to register with, ranges of ports spelt out."""
        return tuple(address for given in self.gateway for address in _addresses(given))


def _addresses(given: str) -> list[str]:
    """Return "host:port" for each port of "host:port" or "host:first-last"; nothing if it is neither."""
    match = re.fullmatch(r"(.+):(\d{1,5})(?:-(\d{1,5}))?", given)
    if match is None:
        return []
    first = int(match[2])
    return [f"{match[1]}:{port}" for port in range(first, int(match[3] or first) + 1)]
