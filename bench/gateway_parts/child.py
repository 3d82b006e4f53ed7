"""A server in a process of its own, and the CPU time that it takes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Self


class Child:
    """A process that says when it is ready; it is stopped on leaving."""

    def __init__(self, module: str, *argv: str) -> None:
        self._name = module
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, *argv], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.terminate()
        self._process.wait(10)

    def ready(self) -> dict[str, str]:
        """Wait for the line that says so; returns what it names."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            facts: dict[str, str] = json.loads(line)
            return facts
        raise SystemExit(f"{self._name} ended with status {self._process.wait()}")

    @property
    def cpu_s(self) -> float:
        """CPU time so far of all threads, as the kernel's scheduler counts it, to the nanosecond."""
        threads = Path(f"/proc/{self._process.pid}/task").glob("*/schedstat")
        return sum(int(thread.read_text().split()[0]) for thread in threads) / 1e9
