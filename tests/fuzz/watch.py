"""Runs a fuzzer against a cluster of processes and judges what it leaves behind."""

from __future__ import annotations

import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from baton.client import Client
from baton.cluster import LocalCluster
from tests.support.tiny_models import TinyLlama, save_tiny_llama

# A request that takes longer has hung: the tiny model fills its whole context in a second or two.
HANG_S = 30.0
SETTLE_S = 10.0
MAX_GROWTH_MB = 64.0
# Shapes seen for the first time make the workers' libraries prepare for them: that is over by half-time.
WARM_SHARE = 0.5

Fuzz = Callable[[LocalCluster, "Findings", float], None]


@dataclass
class Findings:
    """What came of the requests so far.

    Attributes:
        answers: counts by status.
        faults: what must not happen; the first few of each kind.
    """

    answers: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)

    def fault(self, text: str) -> None:
        """Note a fault."""
        if len(self.faults) < 20:
            self.faults.append(text)


def run(fuzz: Fuzz, seconds: float, *, watch_memory: bool = True) -> Findings:
    """Fuzz for a time; faults are 500s, hangs, requests that hold something, and memory that grows."""
    findings = Findings()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = save_tiny_llama(folder / "tiny", TinyLlama(context_length=128))
        # oneDNN keeps half a MB of code for each shape of product: with few, all are there by half-time.
        steps = ("--max-step-tokens", "64", "--max-chunk-tokens", "64")
        worker = ("--kv-bytes", "4M", "--threads", "1", *steps)
        cluster = LocalCluster(
            str(model),
            prefill_args=worker,
            decode_args=worker,
            run_dir=folder / "run",
            own_registry=True,
        )
        with cluster:
            memory = Memory(cluster, seconds)
            fuzz(cluster, findings, time.monotonic() + seconds)
            _check_idle(cluster, findings)
            if watch_memory:
                memory.check(findings)
            for process in (cluster.gateway, *cluster.workers):
                if process.exit_status is not None:
                    findings.fault(process.obituary())
                log = process.log.read_text(errors="replace")
                if "Traceback" in log or '"handler failed' in log:
                    findings.fault(f"{process.name}: {log[log.find('Traceback') :][:1500]}")
    return findings


class Memory:
    """Watches the resident memory of every process from its warm state on."""

    def __init__(self, cluster: LocalCluster, seconds: float) -> None:
        self._processes = (cluster.gateway, *cluster.workers)
        self._warm: list[float] = []
        self._timer = threading.Timer(WARM_SHARE * seconds, self._note)
        self._timer.daemon = True
        self._timer.start()

    def _note(self) -> None:
        self._warm = [resident_mb(process.pid) for process in self._processes]

    def check(self, findings: Findings) -> None:
        """Compare with the warm state."""
        self._timer.cancel()
        for process, before in zip(self._processes, self._warm, strict=True):
            after = resident_mb(process.pid)
            print(f"{process.name}: {before:.0f} MB warm, {after:.0f} MB at the end")
            if after - before > MAX_GROWTH_MB:
                findings.fault(f"{process.name}: memory grew from {before:.0f} to {after:.0f} MB")


def resident_mb(pid: int) -> float:
    """Return the resident memory of a process."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) / 1024


def _check_idle(cluster: LocalCluster, findings: Findings) -> None:
    deadline = time.monotonic() + SETTLE_S
    held: list[str] = []
    with Client(cluster.gateway_address) as client:
        while time.monotonic() < deadline:
            view = client.workers()
            busy = (worker for worker in view.workers if worker.load.used_blocks)
            held = [f"{worker.info.worker_id} {worker.load.used_blocks} blocks" for worker in busy]
            if view.gateway_in_flight:
                held.append(f"gateway {view.gateway_in_flight} requests")
            if not held and len(view.workers) == len(cluster.workers):
                return
            time.sleep(0.2)
    findings.fault(f"still held after {SETTLE_S:g} s: {', '.join(held) or 'a worker is not listed'}")
