"""The display of a cluster that is starting: a line a process; plain lines where there is no terminal."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn


class StartDisplay:
    """Shows how far each process is; `update` may be given to LocalCluster as on_progress."""

    def __init__(self) -> None:
        self._console = Console(stderr=True)
        self._progress = Progress(
            SpinnerColumn(finished_text="[green]✓"),
            TextColumn("{task.description:<12}"),
            TextColumn("{task.fields[state]:<10}"),
            TimeElapsedColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._tasks: dict[str, TaskID] = {}
        self._start = time.monotonic()

    def update(self, name: str, state: str) -> None:
        """Show the new state of a process: "starting", "serving" or "ready"."""
        if name not in self._tasks:
            self._tasks[name] = self._progress.add_task(name, total=1, state=state)
        done = 1 if state == "ready" else 0
        self._progress.update(self._tasks[name], state=state, completed=done)
        if not self._console.is_terminal and done:
            self._console.print(f"{name} ready after {time.monotonic() - self._start:.1f} s", highlight=False)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()
