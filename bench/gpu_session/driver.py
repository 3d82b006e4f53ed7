"""Runs parts on the GPUs of a machine: side by side where they fit, within their time, and all to the end.

A part takes a number of GPUs and is started when so many are free, in the order given; a later part may pass
one that waits for more. What a part prints goes to a file; a few lines of it are shown when it ends. A part
that fails, hangs or is never reached does not touch the others.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

POLL_S = 0.05
KILL_AFTER_S = 5.0


@dataclass(frozen=True, slots=True)
class Part:
    """Some commands that run at once on the same GPUs.

    Attributes:
        name: of the part, and of its files.
        gpus: that it takes; 0: it may run beside others on GPU 0.
        expected_s: as last seen.
        limit_s: after which it is ended.
        commands: argument lists.
        show: a regular expression; the last lines in which it is found are shown.
    """

    name: str
    gpus: int
    expected_s: float
    limit_s: float
    commands: tuple[tuple[str, ...], ...]
    show: str = r"passed|failed|rror"


@dataclass(slots=True)
class Outcome:
    """What became of a part.

    Attributes:
        status: "passed", "failed", "late" (ended at its limit) or "skipped" (no time, or too few GPUs).
        seconds: that it ran.
        exit_statuses: of its commands.
        lines: that it asked to show.
    """

    name: str
    status: str
    seconds: float = 0.0
    exit_statuses: list[int] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)

    @property
    def is_good(self) -> bool:
        """Whether nothing is wrong with it; what was skipped is not."""
        return self.status == "passed"


class _Running:
    def __init__(self, part: Part, gpus: Sequence[int], out: Path, root: Path) -> None:
        self.part, self.gpus, self.start = part, tuple(gpus), time.monotonic()
        visible = ",".join(map(str, gpus)) or "0"
        env = {
            **os.environ,
            "PYTHONUNBUFFERED": "1",
            "PYTHONIOENCODING": "utf-8",
            "CUDA_VISIBLE_DEVICES": visible,
        }
        self.logs = [out / f"{part.name}-{index}.log" for index in range(len(part.commands))]
        self._processes = []
        for command, log in zip(part.commands, self.logs, strict=True):
            with log.open("wb") as file:
                # A group of its own, so that what a part started ends with it.
                self._processes.append(
                    subprocess.Popen(
                        command,
                        cwd=root,
                        env=env,
                        stdout=file,
                        stderr=subprocess.STDOUT,
                        start_new_session=True,
                    )
                )

    def outcome(self, deadline: float) -> Outcome | None:
        """None: it still runs. Past its limit or the deadline it is ended."""
        late = time.monotonic() > min(self.start + self.part.limit_s, deadline)
        if late:
            self.end()
        statuses = [process.poll() for process in self._processes]
        if any(status is None for status in statuses):
            return None
        codes = [status for status in statuses if status is not None]
        status = "late" if late else "failed" if any(codes) else "passed"
        return Outcome(self.part.name, status, time.monotonic() - self.start, codes, self._lines())

    def end(self) -> None:
        """End all that the part started."""
        for signal_number in (signal.SIGTERM, signal.SIGKILL):
            for process in self._processes:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal_number)
            patience = time.monotonic() + KILL_AFTER_S
            while signal_number == signal.SIGTERM and time.monotonic() < patience and self._is_alive():
                time.sleep(POLL_S)
        for process in self._processes:
            process.wait()

    def _is_alive(self) -> bool:
        return any(process.poll() is None for process in self._processes)

    def _lines(self) -> list[str]:
        found = []
        for log in self.logs:
            text = log.read_text(encoding="utf-8", errors="replace").splitlines()
            found += [line.strip()[:200] for line in text if re.search(self.part.show, line)][-12:]
        return found


def run_parts(
    parts: Sequence[Part],
    num_gpus: int,
    out: Path,
    root: Path,
    total_s: float,
    tell: Callable[[Outcome], None],
) -> list[Outcome]:
    """Run all parts.

    Args:
        num_gpus: of this machine.
        out: existing directory for what the parts print.
        root: directory that they run in.
        total_s: after which what runs is ended and what waits is skipped.
        tell: called when a part is over.
    Returns:
        outcomes in the order of their end.
    """
    deadline = time.monotonic() + total_s
    waiting, running = list(parts), list[_Running]()
    free = list(range(num_gpus))
    outcomes: list[Outcome] = []

    def settle(outcome: Outcome) -> None:
        outcomes.append(outcome)
        tell(outcome)

    try:
        while waiting or running:
            for part in [part for part in waiting if _has_no_chance(part, num_gpus, deadline)]:
                waiting.remove(part)
                settle(Outcome(part.name, "skipped"))
            for part in [part for part in waiting if part.gpus <= len(free)]:
                if part.gpus <= len(free):
                    waiting.remove(part)
                    taken, free = free[: part.gpus], free[part.gpus :]
                    running.append(_Running(part, taken, out, root))
            for one in list(running):
                outcome = one.outcome(deadline)
                if outcome is not None:
                    running.remove(one)
                    free = sorted([*free, *one.gpus])
                    settle(outcome)
            time.sleep(POLL_S)
    finally:
        for one in running:
            one.end()
    return outcomes


def _has_no_chance(part: Part, num_gpus: int, deadline: float) -> bool:
    # Begun with less than half of its time left it would only take it from the others.
    return part.gpus > num_gpus or time.monotonic() + part.expected_s / 2 > deadline
