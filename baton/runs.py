"""Which clusters of this user are up, and where their logs lie.

<cache>/runs/<time>-<pid>/    logs of one `baton up`, and `alive`, locked for as long as it runs
<cache>/runs/current.json     the last one that became ready; commands without --address talk to it
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

from baton.models import cache_dir

KEPT_RUNS = 10


@dataclass(frozen=True, slots=True)
class RunningCluster:
    """A cluster that is up.

    Attributes:
        pid: the launcher's process; SIGTERM stops the cluster.
        gateway_address: over gRPC, "host:port".
        http_url: over HTTP.
        run_dir: its logs.
        ca: PEM certificates that its clients believe; empty: it has no TLS.
    """

    pid: int
    gateway_address: str
    http_url: str
    run_dir: str
    ca: str = ""


class Run:
    """The directory of one launcher, marked alive until the process ends."""

    def __init__(self) -> None:
        runs = _runs_dir()
        self.dir = runs / f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
        self.dir.mkdir(parents=True)
        self._alive: IO[str] = (self.dir / "alive").open("w")
        fcntl.flock(self._alive, fcntl.LOCK_EX)
        for old in sorted(path for path in runs.iterdir() if path.is_dir())[:-KEPT_RUNS]:
            if not _is_alive(old):
                shutil.rmtree(old, ignore_errors=True)

    def publish(self, gateway_address: str, http_url: str, ca: str = "") -> None:
        """Make this the cluster that commands find."""
        cluster = RunningCluster(os.getpid(), gateway_address, http_url, str(self.dir), ca)
        draft = self.dir / "cluster.json"
        draft.write_text(json.dumps(asdict(cluster)), encoding="utf-8")
        draft.replace(_current_file())

    def close(self) -> None:
        """Withdraw it."""
        cluster = current()
        if cluster is not None and cluster.run_dir == str(self.dir):
            _current_file().unlink(missing_ok=True)
        self._alive.close()


def current() -> RunningCluster | None:
    """Return the last cluster that became ready, if it is still up."""
    try:
        cluster = RunningCluster(**json.loads(_current_file().read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
    return cluster if _is_alive(Path(cluster.run_dir)) else None


def _runs_dir() -> Path:
    return cache_dir() / "runs"


def _current_file() -> Path:
    return _runs_dir() / "current.json"


def _is_alive(run_dir: Path) -> bool:
    try:
        with (run_dir / "alive").open("r+") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False
