"""Configuration of a vault."""

from __future__ import annotations

from dataclasses import dataclass

from services.worker.gpu import check_gpu


@dataclass(frozen=True, slots=True)
class VaultConfig:
    """All settings of `baton serve vault`; those of the model must be those of its workers.

    Attributes:
        socket: path of the Unix socket that workers attach to.
        token_file: file with the token that workers must show; made if it is missing; empty: SOCKET.token.
        model: directory of a model in Hugging Face's layout, or a GGUF file.
        model_name: name under which it is served.
        backend: "cuda", or "cpu": then the vault holds the KV pool alone, in shared memory.
        gpu: GPU that the memory is on, by its number; of those in CUDA_VISIBLE_DEVICES, if that is set.
        dtype: of weights and KV, as of the workers.
        block_size: tokens a KV block, as of the workers; 0: 16 on cpu, 64 on cuda.
        kv_bytes: size of the KV pool, bytes; rounded down to whole blocks.
        settle_s: seconds for which a share that was given back is given to nobody: longer than a step, so
            that whatever the worker left under way has ended.
        drain_timeout_s: most seconds that workers get to leave after SIGTERM.
        metrics_host: address of the metrics port.
        metrics_port: port of Prometheus metrics; 0: a free one; -1: none.
        log_level: "debug", "info", "warning" or "error".
    """

    socket: str
    model: str
    model_name: str
    token_file: str = ""
    backend: str = "cuda"
    gpu: int = 0
    dtype: str = "auto"
    block_size: int = 0
    kv_bytes: int = 8 << 30
    settle_s: float = 1.0
    drain_timeout_s: float = 30.0
    metrics_host: str = "127.0.0.1"
    metrics_port: int = 0
    log_level: str = "info"

    def __post_init__(self) -> None:
        """Check ranges; those of the model are the engine's to check."""
        if not self.socket:
            raise ValueError("socket: must not be empty")
        check_gpu(self.gpu)
        if self.kv_bytes < 1:
            raise ValueError(f"kv_bytes: must be at least 1, got {self.kv_bytes}")
        for name in ("settle_s", "drain_timeout_s"):
            if not 0 <= getattr(self, name) <= 3600:
                raise ValueError(f"{name}: must be from 0 to 3600 seconds, got {getattr(self, name)}")
        if not -1 <= self.metrics_port <= 65535:
            raise ValueError(f"metrics_port: must be from -1 to 65535, got {self.metrics_port}")
        if self.log_level not in ("debug", "info", "warning", "error"):
            raise ValueError(f"log_level: must be debug, info, warning or error, got {self.log_level!r}")
