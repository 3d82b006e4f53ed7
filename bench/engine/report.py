"""The table on the screen and the JSON file."""

from __future__ import annotations

import json
import os
import platform
import shlex
import statistics
import sys
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from bench.engine.floor import Ceilings, Costs, floor_by_part
from bench.engine.trace import StepTrace
from bench.engine.workloads import Workload
from loadtest.environment import environment

MAX_KERNELS = 16


class Report:
    """Results of one invocation.

    Args:
        command: how it was called.
        settings: of the engine and the model, for the JSON file.
    """

    def __init__(self, command: list[str], settings: dict[str, object], ceilings: Ceilings) -> None:
        self._facts = environment() | {"torch": torch.__version__, "host": platform.machine()}
        # A copy of the tree, as on a borrowed machine, does not know its own commit.
        self._facts["commit"] = os.environ.get("BATON_COMMIT") or self._facts.get("commit", "unknown")
        if torch.cuda.is_available():
            self._facts["gpu"] = torch.cuda.get_device_name()
            self._facts["gpus"] = str(torch.cuda.device_count())
        self._facts["command"] = shlex.join(command)
        self._settings = settings
        self._ceilings = ceilings
        self._roles: dict[str, dict[str, object]] = {}
        self._rows: list[tuple[str, Workload, list[float], float, dict[str, float]]] = []

    def start(self, role: str, **facts: object) -> None:
        """Note how a role started."""
        self._roles[role] = dict(facts)

    def add(self, role: str, workload: Workload, rounds: list[dict[str, float]], floor_s: float) -> None:
        """Add the rounds of one workload in one role."""
        medians = {key: statistics.median(each[key] for each in rounds) for key in rounds[0]}
        self._rows.append((role, workload, [each["figure"] for each in rounds], floor_s, medians))

    def show(self, console: Console) -> None:
        """Print the table of medians."""
        facts = self._facts
        title = f"{self._settings['shape']}, {facts.get('gpu') or facts['cpu']}, {self._settings['dtype']}"
        modes = ["batch-invariant"] if self._settings["batch_invariant"] else []
        title = ", ".join([title, *modes])
        table = Table(title=f"{title}, commit {facts['commit']}")
        table.add_column("role")
        table.add_column("workload")
        for name in ("requests", "in", "out", "median", "", "floor", "of floor", "spread"):
            table.add_column(name, justify="right")
        for name in ("TTFT p50 s", "ITL p50 ms", "p99 ms"):
            table.add_column(name, justify="right")
        for role, workload, figures, floor_s, medians in self._rows:
            figure, floor = statistics.median(figures), workload.figure(floor_s)
            table.add_row(
                role,
                workload.name,
                str(len(workload.sizes)),
                f"{workload.tokens_in:,}",
                f"{workload.tokens_out:,}",
                _number(figure),
                workload.unit,
                _number(floor),
                "–" if workload.is_of_evenness else f"{100 * floor_s / medians['seconds']:.0f} %",
                f"{100 * (max(figures) - min(figures)) / figure:.0f} %",
                f"{medians['ttft_p50_s']:.2f}",
                f"{1e3 * medians['itl_p50_s']:.2f}",
                f"{1e3 * medians['itl_p99_s']:.2f}",
            )
        console.print(table)
        ceilings = self._ceilings
        console.print(
            f"floor at {ceilings.read_bytes_s / 1e12:.3g} TB/s read, "
            f"{ceilings.product_flops / 1e12:.3g} TFLOP/s products, "
            f"{ceilings.attention_flops / 1e12:.3g} TFLOP/s attention, nothing else",
            highlight=False,
        )
        if ceilings.sustained_flops:
            console.print(
                f"products for a second on end: {ceilings.sustained_flops / 1e12:.3g} TFLOP/s",
                highlight=False,
            )
        for role, started in self._roles.items():
            told = ", ".join(f"{name} {value}" for name, value in started.items())
            console.print(f"{role}: {told}", highlight=False)

    def write(self, path: Path) -> None:
        """Write everything as JSON."""
        results = [
            {
                "role": role,
                "workload": workload.name,
                "requests": len(workload.sizes),
                "tokens_in": workload.tokens_in,
                "tokens_out": workload.tokens_out,
                "unit": workload.unit,
                "rounds": figures,
                "floor": workload.figure(floor_s),
                **medians,
            }
            for role, workload, figures, floor_s, medians in self._rows
        ]
        ceilings = {name: getattr(self._ceilings, name) for name in Ceilings.__slots__}
        document = {
            "environment": self._facts,
            "settings": self._settings,
            "ceilings": ceilings,
            "roles": self._roles,
            "results": results,
        }
        path.write_text(json.dumps(document, indent=1) + "\n")


def show_trace(
    console: Console, workload: Workload, trace: StepTrace, costs: Costs, ceilings: Ceilings
) -> None:
    """Print where the time of the recorded steps went, and the floor of each part."""
    num_steps = sum(name == "launch" for name, _, _, _ in trace.spans)
    wall_ms = trace.wall_ms
    console.print(f"{workload.name}: {num_steps} steps in {wall_ms:.1f} ms", highlight=False)
    for phase, median_ms, total_ms in trace.phase_table():
        console.print(
            f"  {phase:9} median {median_ms:8.3f} ms, {100 * total_ms / wall_ms:5.1f} % of the time",
            highlight=False,
        )
    kernels = trace.kernel_table()
    busy_ms = sum(total_ms for _, _, total_ms in kernels)
    if kernels:
        console.print(f"  kernels busy {100 * busy_ms / wall_ms:.1f} % of the time", highlight=False)
        floors = [floor_by_part(work, costs, ceilings) for work in trace.work]
        for part, total_ms in trace.part_table().items():
            floor_ms = 1e3 * sum(floor.get(part, 0.0) for floor in floors)
            of_floor = (
                f"floor {floor_ms / num_steps:8.3f} ({100 * floor_ms / total_ms:.0f} %)" if floor_ms else ""
            )
            console.print(f"  {part:18} {total_ms / num_steps:8.3f} ms a step, {of_floor}", highlight=False)
    for name, count, total_ms in kernels[:MAX_KERNELS]:
        console.print(
            f"  {100 * total_ms / busy_ms:5.1f} % {count:6} x {1e3 * total_ms / count:8.1f} us  {name}",
            highlight=False,
        )


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


def command_line(prog: str, argv: list[str]) -> list[str]:
    """Return the command as it may be typed again."""
    return [*(prog.split() or sys.argv[:1]), *argv]
