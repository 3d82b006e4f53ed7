"""One process of a local cluster."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from baton.errors import ClusterError

Role = Literal["gateway", "prefill", "decode", "both", "vault"]
TAIL_LINES = 15


class ServiceProcess:
    """A service in a process of its own, in a session of its own: Ctrl-C reaches the launcher alone.

    Attributes:
        name: worker id, or "gateway".
        role: which service.
        log: file with its standard output and error.
        ready: facts of the ready line; None until it came.
    """

    def __init__(
        self, name: str, role: Role, flags: Sequence[str], log: Path, environ: Mapping[str, str]
    ) -> None:
        self.name = name
        self.role = role
        self.flags = tuple(flags)
        self.log = log
        self.ready: dict[str, object] | None = None
        self._unread = log.stat().st_size if log.exists() else 0
        with log.open("ab") as output:
            self._popen = subprocess.Popen(
                [sys.executable, "-m", "baton.child", f"services.{role}.main", *flags],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=dict(environ),
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """Process id."""
        return self._popen.pid

    @property
    def address(self) -> str:
        """Where its gRPC services listen.

        Raises:
            ClusterError: it is not ready.
        """
        if self.ready is None:
            raise ClusterError(f"{self.name} is not ready")
        return str(self.ready["address"])

    @property
    def exit_status(self) -> int | None:
        """None while it runs; negative: ended by that signal."""
        return self._popen.poll()

    def poll_ready(self) -> bool:
        """Read what the log has gained, and return whether the ready line has come.

        Raises:
            ClusterError: the process has ended; the message has its last lines.
        """
        if self.ready is None:
            ended = self.exit_status is not None
            with self.log.open("rb") as file:
                file.seek(self._unread)
                *lines, _ = file.read().split(b"\n")
            self._unread += sum(len(line) + 1 for line in lines)
            self.ready = next((facts for line in lines if (facts := _ready_facts(line))), None)
            if self.ready is None and ended:
                raise ClusterError(self.obituary())
        return self.ready is not None

    def obituary(self) -> str:
        """Say how it ended, with the last lines of its log."""
        status = self.exit_status
        how = "still runs" if status is None else f"ended with status {status}"
        if status is not None and status < 0:
            how = f"was ended by {signal.Signals(-status).name}"
        lines = self.log.read_text(errors="replace").splitlines()[-TAIL_LINES:]
        return "\n".join([f"{self.name} (pid {self.pid}) {how}; the end of {self.log}:", *lines])

    def terminate(self) -> None:
        """Ask it to drain and end."""
        if self.exit_status is None:
            self._popen.terminate()

    def kill(self) -> None:
        """End it at once, as a crash would, and wait until it is gone."""
        if self.exit_status is None:
            self._popen.kill()
        self.wait(None)

    def wait(self, timeout_s: float | None) -> bool:
        """Wait until it has ended; False: it still runs after `timeout_s`."""
        try:
            self._popen.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return False
        if self._popen.stdin is not None:
            self._popen.stdin.close()
        return True


def child_environ(extra: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of a service: this one's, the repository on the path, and `extra`."""
    root = str(Path(__file__).resolve().parent.parent)
    path = os.pathsep.join(part for part in (root, os.environ.get("PYTHONPATH", "")) if part)
    return {**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1", **extra}


def _ready_facts(line: bytes) -> dict[str, object] | None:
    if b'"ready"' not in line:
        return None
    try:
        facts: object = json.loads(line)
    except ValueError:
        return None
    return facts if isinstance(facts, dict) and facts.get("event") == "ready" else None
