"""A cluster on this machine: a gateway and its workers, each a process.

with LocalCluster(prefill=1, decode=2) as cluster, Client(cluster.gateway_address) as client:
    print(client.complete("Hello").text)

LocalCluster(prefill=0, decode=0, both=2) has co-located workers instead.

All processes start at once. The gateway's ports are therefore chosen here, so that the workers know
where to register while the gateway is still starting.
"""

from __future__ import annotations

import contextlib
import itertools
import ssl
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from baton import models, vaults
from baton.connection import OPEN, Credentials
from baton.errors import ClusterError, RequestError
from baton.ports import LOOPBACK, free_ports, free_range
from baton.process import Role, ServiceProcess, child_environ

POLL_S = 0.02
KILL_AFTER_S = 5.0

WorkerRole = Literal["prefill", "decode", "both"]
OnProgress = Callable[[str, str], None]
"""Called with (process, "starting" | "serving" | "ready")."""


class LocalCluster:
    """Starts the processes, watches them, and stops them.

    Args:
        model: a directory, a GGUF file, or a name that baton.models fetches.
        prefill, decode, both: how many workers of each kind.
        model_name: name to serve it under; empty: the last part of `model`.
        tokenizer: directory with tokenizer.json; empty: beside the model.
        host: where the gateway listens; workers listen on loopback.
        grpc_port, http_port: of the gateway; 0: a free one.
        gateway_args, prefill_args, decode_args, both_args, vault_args: more flags for each of that kind.
        gpus: numbers of the GPUs that workers get by turns, in the order in which they are started; empty:
            none is named to them.
        backend: of workers and vaults; empty: what their flags say, with a vault cpu.
        vault_bytes: KV pool of the vault that the workers of each GPU share; 0: there is none.
        gateway_processes: processes that share the gateway's ports.
        certs: folder made by `baton certs`: TLS, mutual TLS and CURVE; None: everything is open.
        keys_file: file of API keys that the gateway asks for; None: it asks for none.
        own_registry: workers register on a port of their own, as certificates, keys and processes need it.
        environ: more environment variables for every process.
        run_dir: where the logs go; None: a new directory under the system's temporary one.
        start_timeout_s: ClusterError if it takes longer until every worker is ready.

    Attributes:
        workers: those that were started and not stopped, dead ones included.
    """

    def __init__(
        self,
        model: str = models.DEFAULT_MODEL,
        prefill: int = 1,
        decode: int = 1,
        both: int = 0,
        *,
        model_name: str = "",
        tokenizer: str = "",
        host: str = LOOPBACK,
        grpc_port: int = 0,
        http_port: int = 0,
        gateway_args: Sequence[str] = (),
        prefill_args: Sequence[str] = (),
        decode_args: Sequence[str] = (),
        both_args: Sequence[str] = (),
        vault_args: Sequence[str] = (),
        gpus: Sequence[int] = (),
        backend: str = "",
        vault_bytes: int = 0,
        gateway_processes: int = 1,
        certs: Path | None = None,
        keys_file: Path | None = None,
        own_registry: bool = False,
        environ: Mapping[str, str] | None = None,
        run_dir: Path | None = None,
        start_timeout_s: float = 240.0,
        on_progress: OnProgress | None = None,
    ) -> None:
        self.run_dir = run_dir or Path(tempfile.mkdtemp(prefix="baton-"))
        self.workers: list[ServiceProcess] = []
        self.model_name = model_name or Path(model).name
        self._model = models.resolve(model)
        beside = self._model if self._model.is_dir() else self._model.parent
        self._tokenizer = Path(tokenizer).expanduser() if tokenizer else beside
        self._counts: dict[WorkerRole, int] = {"prefill": prefill, "decode": decode, "both": both}
        self._args = {
            "gateway": gateway_args,
            "prefill": prefill_args,
            "decode": decode_args,
            "both": both_args,
            "vault": vault_args,
        }
        self._gpus = itertools.cycle(gpus)
        # Left to themselves, workers and vault would not choose the same.
        backend = backend or ("cpu" if vault_bytes else "")
        self._backend = ["--backend", backend] if backend else []
        roles = [role for role, count in self._counts.items() for _ in range(count)]
        self._vaults = vaults.plan(vault_bytes, self.run_dir, roles, gpus) if vault_bytes else {}
        self._vault_processes: list[ServiceProcess] = []
        self._host = host
        self._ports = free_ports(grpc_port, http_port)
        self._processes = gateway_processes
        self._certs = certs
        self._keys_file = keys_file
        has_registry = own_registry or certs is not None or keys_file is not None or gateway_processes > 1
        self._registry_port = free_range(gateway_processes) if has_registry else 0
        self._environ = child_environ(environ or {})
        self._start_timeout_s = start_timeout_s
        self._on_progress = on_progress or (lambda _name, _state: None)
        self._gateway: ServiceProcess | None = None
        self._numbers = {"prefill": 0, "decode": 0, "both": 0}
        self._reported: set[int] = set()
        self._lock = threading.Lock()

    @property
    def gateway(self) -> ServiceProcess:
        """The gateway's process.

        Raises:
            ClusterError: the cluster was not started.
        """
        if self._gateway is None:
            raise ClusterError("the cluster was not started")
        return self._gateway

    @property
    def gateway_address(self) -> str:
        """Where clients reach the gateway over gRPC, "host:port"."""
        return f"{self._client_host}:{self._ports[0]}"

    @property
    def http_url(self) -> str:
        """Where clients reach the gateway over HTTP, without a slash at the end."""
        return f"http{'s' if self._certs else ''}://{self._client_host}:{self._ports[1]}"

    @property
    def ca(self) -> str:
        """PEM certificates that clients believe; empty: the cluster has no TLS."""
        return str(self._certs / "ca.pem") if self._certs else ""

    def start(self) -> None:
        """Start everything, and wait until the gateway has every worker.

        Raises:
            ClusterError: a process ended, or it took too long; everything was stopped again.
        """
        self.run_dir.mkdir(parents=True, exist_ok=True)
        try:
            self._gateway = self._spawn("gateway", "gateway", self._gateway_flags())
            self._start_vaults()
            for role, count in self._counts.items():
                for _ in range(count):
                    self._spawn_worker(role)
            self._wait_ready([self.gateway, *self.workers])
        except BaseException:
            self.stop(grace_s=0.0)
            raise

    def stop(self, grace_s: float = 10.0) -> None:
        """Let the gateway finish its requests for `grace_s` seconds, then stop everything. Idempotent."""
        with self._lock:
            running = [process for process in (self._gateway, *self.workers) if process is not None]
            running += self._vault_processes
            if self._gateway is not None:
                self._gateway.terminate()
                self._gateway.wait(grace_s)
            for process in running:
                process.terminate()
            deadline = time.monotonic() + KILL_AFTER_S
            for process in running:
                if not process.wait(max(0.0, deadline - time.monotonic())):
                    process.kill()
            self.workers.clear()
            self._vault_processes.clear()
            self._gateway = None

    def add_worker(self, role: WorkerRole, args: Sequence[str] = ()) -> ServiceProcess:
        """Start one more worker, and wait until the gateway has it."""
        worker = self._spawn_worker(role, args)
        self._wait_ready([worker])
        return worker

    def kill(self, worker: ServiceProcess) -> None:
        """End a worker as a crash would (SIGKILL)."""
        self._reported.add(worker.pid)
        worker.kill()

    def restart(self, worker: ServiceProcess) -> ServiceProcess:
        """Start a worker again that has ended, under its old name, and wait until the gateway has it."""
        self.workers.remove(worker)
        reborn = self._spawn(worker.name, worker.role, worker.flags)
        self.workers.append(reborn)
        self._wait_ready([reborn])
        return reborn

    def replace(self, worker: ServiceProcess, drain_s: float = 60.0) -> ServiceProcess:
        """Replace a worker as a rolling update does: it drains while another one starts.

        SIGTERM lets it refuse what is new, finish what runs, leave the gateway and end.

        Returns:
            The new worker, once the gateway has it and the old one is gone.
        Raises:
            ClusterError: the old one did not end by itself within `drain_s` seconds (it is killed), or not
                with status 0; or the new one does not come up.
        """
        self._reported.add(worker.pid)
        worker.terminate()
        assert worker.role != "gateway"
        assert worker.role != "vault"
        flags = list(worker.flags)
        flags[flags.index("--worker-id") + 1] = name = self._next_name(worker.role)
        new = self._spawn(name, worker.role, flags)
        self.workers.append(new)
        self._wait_ready([new])
        ended = worker.wait(drain_s)
        self.workers.remove(worker)
        if not ended:
            worker.kill()
            raise ClusterError(f"{worker.name} had not drained after {drain_s:g} s")
        if worker.exit_status != 0:
            raise ClusterError(worker.obituary())
        return new

    def new_deaths(self) -> list[ServiceProcess]:
        """Return the processes that have ended by themselves since the last call."""
        processes = [p for p in (self._gateway, *self._vault_processes, *self.workers) if p is not None]
        dead = [p for p in processes if p.exit_status is not None and p.pid not in self._reported]
        self._reported.update(process.pid for process in dead)
        return dead

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def _client_host(self) -> str:
        return LOOPBACK if self._host in ("0.0.0.0", "::") else self._host

    def _gateway_flags(self) -> list[str]:
        grpc_port, http_port = self._ports
        ports = ["--grpc-port", str(grpc_port), "--http-port", str(http_port)]
        if self._registry_port:
            ports += ["--registry-port", str(self._registry_port), "--processes", str(self._processes)]
        access = [*self._peer_flags("gateway")]
        if self._certs is not None:
            access += ["--tls-cert", str(self._certs / "server.pem")]
            access += ["--tls-key", str(self._certs / "server.key")]
        if self._keys_file is not None:
            access += ["--keys-file", str(self._keys_file)]
        model = self._model_flags(self._tokenizer)
        return ["--host", self._host, *ports, *access, *model, *self._args["gateway"]]

    def _peer_flags(self, name: str) -> list[str]:
        if self._certs is None:
            return []
        cert, key, ca = (str(self._certs / file) for file in (f"{name}.pem", f"{name}.key", "ca.pem"))
        return ["--peer-cert", cert, "--peer-key", key, "--peer-ca", ca]

    @property
    def _registry_addresses(self) -> list[str]:
        if not self._registry_port:
            return [self.gateway_address]
        return [f"{self._client_host}:{self._registry_port + i}" for i in range(self._processes)]

    def _model_flags(self, model: Path) -> list[str]:
        return ["--model", str(model), "--model-name", self.model_name]

    def _spawn_worker(self, role: WorkerRole, args: Sequence[str] = ()) -> ServiceProcess:
        name = self._next_name(role)
        gateways = ",".join(self._registry_addresses)
        flags = ["--gateway", gateways, "--worker-id", name, "--host", LOOPBACK, "--port", "0"]
        flags += self._peer_flags("worker")
        flags += self._backend
        if (gpu := next(self._gpus, None)) is not None:
            flags += ["--gpu", str(gpu)]
        if self._vaults:
            flags += self._vaults[gpu].worker_flags(role)
        worker = self._spawn(name, role, [*flags, *self._model_flags(self._model), *self._args[role], *args])
        self.workers.append(worker)
        return worker

    def _start_vaults(self) -> None:
        """Start the vaults, and wait: workers attach at once."""
        for vault in self._vaults.values():
            flags = [*vault.flags(), *self._backend, *self._model_flags(self._model), *self._args["vault"]]
            self._vault_processes.append(self._spawn(vault.name, "vault", flags))
        self._wait_serving(self._vault_processes, time.monotonic() + self._start_timeout_s)

    def _next_name(self, role: WorkerRole) -> str:
        name = f"{role}-{self._numbers[role]}"
        self._numbers[role] += 1
        return name

    def _spawn(self, name: str, role: Role, flags: Sequence[str]) -> ServiceProcess:
        self._on_progress(name, "starting")
        return ServiceProcess(name, role, flags, self.run_dir / f"{name}.log", self._environ)

    def _wait_ready(self, processes: Sequence[ServiceProcess]) -> None:
        deadline = time.monotonic() + self._start_timeout_s
        self._wait_serving(processes, deadline)
        self._wait_listed(processes, deadline)

    def _wait_serving(self, processes: Sequence[ServiceProcess], deadline: float) -> None:
        pending = list(processes)
        while pending:
            for process in [process for process in pending if process.poll_ready()]:
                pending.remove(process)
                self._on_progress(process.name, "serving")
            self._check_deadline(deadline, pending)

    def _wait_listed(self, processes: Sequence[ServiceProcess], deadline: float) -> None:
        from baton.client import Client

        credentials = OPEN
        if self._certs is not None:
            cert, key = (str(self._certs / name) for name in ("gateway.pem", "gateway.key"))
            credentials = Credentials(ca=self.ca, cert=cert, key=key, server_name="gateway.baton")
        workers = [process for process in processes if process.role != "gateway"]
        for address in self._registry_addresses:
            missing = {process.name: process for process in workers}
            with Client(address, credentials) as client:
                while missing or not self._is_servable():
                    with contextlib.suppress(RequestError):
                        for status in client.workers(timeout_s=1.0).workers:
                            if not status.draining and status.info.worker_id in missing:
                                del missing[status.info.worker_id]
                    for process in (self.gateway, *processes):
                        if process.exit_status is not None:
                            raise ClusterError(process.obituary())
                    self._check_deadline(deadline, list(missing.values()) or [self.gateway])
        for process in workers:
            self._on_progress(process.name, "ready")
        self._on_progress("gateway", "ready")

    def _is_servable(self) -> bool:
        """Ask /ready: a worker of each kind is listed."""
        tls = ssl.create_default_context(cafile=self.ca) if self.ca else None
        try:
            with urllib.request.urlopen(f"{self.http_url}/ready", timeout=1.0, context=tls):
                return True
        except OSError:
            return False

    def _check_deadline(self, deadline: float, waiting: Sequence[ServiceProcess]) -> None:
        if time.monotonic() > deadline:
            raise ClusterError(
                f"not ready after {self._start_timeout_s:g} s: {', '.join(p.name for p in waiting)}; "
                + (waiting[0].obituary() if waiting else "")
            )
        time.sleep(POLL_S)
