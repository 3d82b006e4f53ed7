"""Configuration of the gateway."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class GatewayConfig:
    """Where it listens, what it serves, and how much at once.

    Attributes:
        host: address to listen on, for both ports.
        grpc_port: port of the gRPC services; 0: a free one, named in the ready line.
        http_port: port of the OpenAI API, /health, /ready and /metrics; 0: a free one.
        advertise_host: host that others reach this service by; empty: `host`.
        model: directory of the model: tokenizer.json, chat template.
        model_name: name under which it is served; empty: the directory's name.
        max_in_flight: most requests at once; more are refused with 429. 0: no limit.
        max_queue: most requests that wait for room on a decode worker; more are refused with 429.
        max_body_bytes: most bytes of a request; larger ones are refused unread.
        request_timeout_s: deadline of a request that brings none, seconds.
        beat_interval_ms: how often workers report; three missed beats and a worker is lost.
        worker_wait_s: how long a request whose worker was lost waits for another one, seconds.
        max_retries: times in a row that a request is tried again without getting a token.
        local_prefill_tokens: a prompt with at most so many uncached tokens is computed by its decode worker
            itself; 0: none. Co-located workers compute their own prompts of any length.
        expected_output_tokens: output tokens that routing expects of a request that asks for more.
        drain_timeout_s: most seconds that running requests get to end after SIGTERM.
        log_level: "debug", "info", "warning" or "error".
    """

    model: str
    model_name: str = ""
    host: str = "127.0.0.1"
    grpc_port: int = 50050
    http_port: int = 8000
    advertise_host: str = ""
    max_in_flight: int = 0
    max_queue: int = 1024
    max_body_bytes: int = 4 << 20
    request_timeout_s: float = 600.0
    beat_interval_ms: int = 1000
    worker_wait_s: float = 10.0
    max_retries: int = 3
    local_prefill_tokens: int = 0
    expected_output_tokens: int = 256
    drain_timeout_s: float = 30.0
    log_level: str = "info"

    def __post_init__(self) -> None:
        """Check ranges."""
        for name in ("grpc_port", "http_port"):
            if not 0 <= getattr(self, name) <= 65535:
                raise ValueError(f"{name}: must be from 0 to 65535, got {getattr(self, name)}")
        for name in (
            "max_in_flight",
            "max_queue",
            "max_retries",
            "worker_wait_s",
            "drain_timeout_s",
            "local_prefill_tokens",
        ):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: must be at least 0, got {getattr(self, name)}")
        for name in ("max_body_bytes", "beat_interval_ms", "expected_output_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: must be at least 1, got {getattr(self, name)}")
        if self.request_timeout_s <= 0:
            raise ValueError(f"request_timeout_s: must be above 0, got {self.request_timeout_s}")
        if self.log_level not in ("debug", "info", "warning", "error"):
            raise ValueError(f"log_level: must be debug, info, warning or error, got {self.log_level!r}")
        if not Path(self.model).expanduser().is_dir():
            raise ValueError(f"model: {self.model!r} is not a directory")

    @property
    def model_dir(self) -> Path:
        """The model's directory."""
        return Path(self.model).expanduser()

    @property
    def served_name(self) -> str:
        """The name that clients ask for."""
        return self.model_name or self.model_dir.resolve().name
