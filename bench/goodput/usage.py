"""CPU time of the cluster's processes: what a gateway or a worker's host side used of a core."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path

from baton.cluster import LocalCluster


class Usage:
    """Counts from its making on.

    Args:
        pids: name -> process.
    """

    def __init__(self, pids: Mapping[str, int]) -> None:
        self._pids = dict(pids)
        self._start = time.monotonic()
        self._before = {name: _cpu_s(pid) for name, pid in self._pids.items()}

    def cores(self) -> dict[str, float]:
        """Return how many cores each process used, on average; one that has ended is left out."""
        passed = max(time.monotonic() - self._start, 1e-9)
        now = {name: _cpu_s(pid) for name, pid in self._pids.items()}
        return {
            name: round((after - before) / passed, 3)
            for name, after in now.items()
            if after is not None and (before := self._before[name]) is not None
        }


def cluster_pids(cluster: LocalCluster) -> dict[str, int]:
    """Return name -> process of gateway and workers; of a gateway of several processes, of each."""
    pids = {worker.name: worker.pid for worker in cluster.workers}
    children = _children(cluster.gateway.pid)
    if not children:
        return pids | {"gateway": cluster.gateway.pid}
    return pids | {f"gateway-{index}": pid for index, pid in enumerate(children)}


def _children(parent: int) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        fields = _stat(path)
        if fields is not None and int(fields[1]) == parent:
            found.append(int(path.parent.name))
    return sorted(found)


def _cpu_s(pid: int) -> float | None:
    fields = _stat(Path(f"/proc/{pid}/stat"))
    return None if fields is None else (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _stat(path: Path) -> list[str] | None:
    """Return the fields after the command's name, which may hold blanks; None: it has ended."""
    try:
        return path.read_text().rpartition(")")[2].split()
    except OSError:
        return None
