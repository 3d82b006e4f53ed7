"""Configuration of the gateway."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path

from services.common.keys import KeyRing, Limits
from services.common.tls import Certificate, PeerConfig
from services.common.tracing import TracesConfig


@dataclass(frozen=True, slots=True)
class AccessConfig:
    """Who may use the public ports.

    Attributes:
        tls_cert: PEM certificate of the public ports; its names are what clients call the gateway.
        tls_key: PEM key of tls_cert.
        keys_file: API keys that are accepted, as `baton keys` writes them; read again when it changes.
            Empty: none is asked for.
    """

    tls_cert: str = ""
    tls_key: str = ""
    keys_file: str = ""

    def __post_init__(self) -> None:
        """Check the files."""
        if self.tls_cert or self.tls_key:
            Certificate(self.tls_cert, self.tls_key).check(("tls_cert", "tls_key"))
        if self.keys_file:
            KeyRing.read(Path(self.keys_file).expanduser())

    @property
    def certificate(self) -> Certificate | None:
        """What the public ports show; None: they have no TLS."""
        return Certificate(self.tls_cert, self.tls_key) if self.tls_cert else None

    @property
    def keys_path(self) -> Path | None:
        """The file of keys; None: no keys are asked for."""
        return Path(self.keys_file).expanduser() if self.keys_file else None


@dataclass(frozen=True, slots=True)
class LimitsConfig:
    """How much comes in, how much runs at once, and how long the rest waits.

    What comes in is counted over all processes of a gateway; what runs and waits is each process's own.

    Attributes:
        max_in_flight: most requests at once, waiting ones included; more are refused with 429. 0: no limit.
        max_tokens_in_flight: most tokens of prompts and expected answers at once. 0: no limit.
        requests_per_minute: most requests begun a minute. 0: no limit.
        tokens_per_minute: most tokens of prompts and answers a minute. 0: no limit.
        max_running: most requests of a gateway process that workers have at once; more wait in the gateway.
            0: all go to the workers, and wait there.
        max_queue: most requests that wait in a gateway process; more are refused with 429.
        max_queue_s: longest that a request may wait, seconds, in the gateway and at the workers that
            compute prompts; one that would wait longer is refused at once, as is one whose answer would be
            late for its deadline. 0: until its deadline.
        priority_step_s: seconds of waiting that one level of priority is worth.
    """

    max_in_flight: int = 0
    max_tokens_in_flight: int = 0
    requests_per_minute: int = 0
    tokens_per_minute: int = 0
    max_running: int = 0
    max_queue: int = 1024
    max_queue_s: float = 0.0
    priority_step_s: float = 1.0

    def __post_init__(self) -> None:
        """Check ranges."""
        for name in (entry.name for entry in fields(self)):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: must be at least 0, got {getattr(self, name)}")

    @property
    def of_all(self) -> Limits:
        """Limits of all callers together."""
        return Limits(
            self.max_in_flight, self.max_tokens_in_flight, self.requests_per_minute, self.tokens_per_minute
        )


@dataclass(frozen=True, slots=True)
class GatewayConfig:
    """Where it listens, what it serves, and how much at once.

    Attributes:
        host: address to listen on, for all ports.
        grpc_port: port of the public gRPC API; 0: a free one, named in the ready line.
        http_port: port of the OpenAI API, /health, /ready and /metrics; 0: a free one.
        registry_port: port where workers register, with mutual TLS if peer_cert is given; 0: a free one;
            -1: on grpc_port, where whoever may call may register.
        metrics_port: one more port of /metrics, for which no key is needed; 0: a free one; -1: none.
        advertise_host: host that others reach this service by; empty: `host`.
        processes: gateway processes that share grpc_port and http_port; process i has registry_port + i
            and metrics_port + i, and workers must be given all of the former: --gateway HOST:50051-50054.
        process_index: which of them this one is; given by the one that starts them. -1: that one.
        limits_fd: open file of the memory where they count together; given likewise. -1: none.
        model: directory of the model: tokenizer.json, chat template.
        model_name: name under which it is served; empty: the directory's name.
        max_body_bytes: most bytes of a request; larger ones are refused unread.
        request_timeout_s: deadline of a request that brings none, seconds.
        beat_interval_ms: how often workers report; three missed beats and a worker is lost.
        worker_wait_s: how long a request whose worker was lost waits for another one, seconds.
        max_retries: times in a row that a request is tried again without getting a token.
        local_prefill_tokens: a prompt with at most so many uncached tokens is computed by its decode worker
            itself; 0: none, which is best on a CPU (docs/benchmarks.md has a formula for GPUs). Co-located
            workers compute their own prompts of any length.
        expected_output_tokens: output tokens that routing and limits expect of a request that asks for more.
        drain_timeout_s: most seconds that running requests get to end after SIGTERM.
        log_level: "debug", "info", "warning" or "error".
    """

    model: str
    model_name: str = ""
    host: str = "127.0.0.1"
    grpc_port: int = 50050
    http_port: int = 8000
    registry_port: int = -1
    metrics_port: int = -1
    advertise_host: str = ""
    processes: int = 1
    process_index: int = -1
    limits_fd: int = -1
    max_body_bytes: int = 4 << 20
    request_timeout_s: float = 600.0
    beat_interval_ms: int = 1000
    worker_wait_s: float = 10.0
    max_retries: int = 3
    local_prefill_tokens: int = 0
    expected_output_tokens: int = 256
    drain_timeout_s: float = 30.0
    log_level: str = "info"
    limits: LimitsConfig = field(default_factory=LimitsConfig)
    access: AccessConfig = field(default_factory=AccessConfig)
    peers: PeerConfig = field(default_factory=PeerConfig)
    traces: TracesConfig = field(default_factory=TracesConfig)

    def __post_init__(self) -> None:
        """Check ranges, and that no port is open by mistake."""
        for name in ("grpc_port", "http_port"):
            if not 0 <= getattr(self, name) <= 65535:
                raise ValueError(f"{name}: must be from 0 to 65535, got {getattr(self, name)}")
        for name in ("registry_port", "metrics_port"):
            if not -1 <= getattr(self, name) <= 65535:
                raise ValueError(f"{name}: must be from -1 to 65535, got {getattr(self, name)}")
        for name in ("max_retries", "worker_wait_s", "drain_timeout_s", "local_prefill_tokens"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: must be at least 0, got {getattr(self, name)}")
        for name in ("max_body_bytes", "beat_interval_ms", "expected_output_tokens", "processes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: must be at least 1, got {getattr(self, name)}")
        if self.request_timeout_s <= 0:
            raise ValueError(f"request_timeout_s: must be above 0, got {self.request_timeout_s}")
        if self.log_level not in ("debug", "info", "warning", "error"):
            raise ValueError(f"log_level: must be debug, info, warning or error, got {self.log_level!r}")
        if not Path(self.model).expanduser().is_dir():
            raise ValueError(f"model: {self.model!r} is not a directory")
        self._check_access()

    @property
    def model_dir(self) -> Path:
        """The model's directory."""
        return Path(self.model).expanduser()

    @property
    def served_name(self) -> str:
        """The name that clients ask for."""
        return self.model_name or self.model_dir.resolve().name

    def _check_access(self) -> None:
        access, peers = self.access, self.peers
        missing = [] if access.tls_cert else ["TLS (--tls-cert, --tls-key)"]
        missing += [] if access.keys_file else ["API keys (--keys-file)"]
        missing += [] if peers.peer_cert else ["mutual TLS (--peer-cert, --peer-key, --peer-ca)"]
        peers.check_reach("host", self.host, " and ".join(missing))
        if self.registry_port == -1:
            for name, is_set in (
                ("keys_file", access.keys_file),
                ("tls_cert", access.tls_cert),
                ("peer_cert", peers.peer_cert),
                ("processes", self.processes > 1),
            ):
                if is_set:
                    raise ValueError(
                        f"{name}: needs --registry-port, for workers register on the public port without it"
                    )
