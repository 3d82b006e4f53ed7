"""`baton bench engine`: what the engine can do, without gateway, text and network.

Workloads (bench/engine/workloads.py) with random weights of any shape, in one process or in a
prefill and a decode worker with a transport between them. Prints medians beside the floor.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import Progress, TextColumn, TimeElapsedColumn

from baton import models
from bench.engine.apart import Apart
from bench.engine.ceilings import measure_ceilings
from bench.engine.co_located import CoLocated
from bench.engine.floor import Ceilings, Costs, floor_seconds, model_costs
from bench.engine.model import random_model
from bench.engine.report import Report, command_line, show_trace
from bench.engine.trace import StepTrace
from bench.engine.workloads import DEFAULT, MAKERS, Workload, make_workload, warm_up_workload
from engine.config import EngineConfig
from engine.errors import EngineError, InvalidRequestError
from engine.models.architecture import Architecture
from engine.models.load import load_model_config
from services.common.config import parse_config

Driver = CoLocated | Apart
ROLES = ("both", "apart")
MIN_WIDTH = 140


def main(argv: Sequence[str], prog: str = "baton bench engine") -> int:
    """Run the benchmark; returns the exit status."""
    arguments = list(argv)
    parser = _parser(prog)
    args, engine_flags = parser.parse_known_args(arguments)
    console, progress_console = Console(), Console(stderr=True)
    console.width = max(console.width, MIN_WIDTH)  # a cut figure is worse than a wrapped line
    with tempfile.TemporaryDirectory(prefix="baton-bench-") as scratch:
        config_dir = args.config or models.resolve(models.DEFAULT_MODEL, models.show_progress)
        try:
            model = random_model(config_dir, Path(scratch) / "model")
            architecture = load_model_config(str(model))
        except (OSError, EngineError) as error:
            parser.error(f"--config: {error}")
        flags = ["--model", str(model), "--model-name", config_dir.name, "--backend", args.backend]
        flags += engine_flags
        config = parse_config(
            EngineConfig, "bench", flags, errors=(ValueError, InvalidRequestError)
        ).resolved()
        bench = _Bench(args, config, flags, architecture, Path(scratch), progress_console)
        report = Report(command_line(prog, arguments), bench.settings(), bench.ceilings)
        for role in args.role:
            bench.run_role(role, report, console)
    report.show(console)
    if args.json:
        report.write(args.json)
    return 0


class _Bench:
    def __init__(
        self,
        args: argparse.Namespace,
        config: EngineConfig,
        flags: list[str],
        architecture: Architecture,
        scratch: Path,
        console: Console,
    ) -> None:
        self._args = args
        self._config = config
        self._flags = flags
        self._scratch = scratch
        self._console = console
        self._vocab_size = architecture.vocab_size
        context_length = config.context_length or architecture.max_positions
        self._workloads = [make_workload(name, args.scale, context_length) for name in args.workloads]
        self._costs: Costs = model_costs(architecture, config.dtype)
        self.ceilings: Ceilings = args.ceilings or measure_ceilings(config.backend, config.dtype)

    def settings(self) -> dict[str, object]:
        """Return what the JSON file says of model and engine."""
        config = self._config
        return {
            "shape": config.model_name,
            "backend": config.backend,
            "dtype": config.dtype,
            "scale": self._args.scale,
            "rounds": self._args.rounds,
            "block_size": config.block_size,
            "max_running": config.max_running,
            "max_step_tokens": config.max_step_tokens,
            "graphs": config.graphs,
            "ahead": config.ahead,
            "batch_invariant": config.batch_invariant,
        }

    def run_role(self, role: str, report: Report, console: Console) -> None:
        """Measure every workload in one role, then record steps of each if that was asked for."""
        with self._driver(role) as driver:
            with self._told(f"{role}: warm-up"):
                self._once(driver, warm_up_workload(self._workloads), 0)
            steps: dict[str, int] = {}
            for workload in self._workloads:
                rounds = []
                for number in range(1, self._args.rounds + 1):
                    before = driver.counters().get("steps", 0)
                    with self._told(f"{role}: {workload.name}, round {number} of {self._args.rounds}"):
                        rounds.append(self._once(driver, workload, number))
                    steps[workload.name] = driver.counters().get("steps", 0) - before
                floor_s = floor_seconds(
                    workload,
                    self._costs,
                    self.ceilings,
                    self._config.max_running,
                    self._config.max_step_tokens,
                )
                report.add(role, workload, rounds, floor_s)
            if isinstance(driver, CoLocated):
                phases = {f"load {name} s": round(s, 2) for name, s in driver.built.load_seconds.items()}
                report.start(
                    role,
                    **{"start s": round(driver.start_s, 2)},
                    **phases,
                    **{"KV blocks": driver.built.num_blocks},
                    **driver.counters(),
                )
                if self._args.profile:
                    self._trace(driver, console, steps)
            else:
                report.start(
                    role, **{"start s": round(driver.start_s, 2)}, transports=sorted(driver.transports)
                )

    def _once(self, driver: Driver, workload: Workload, seed: int) -> dict[str, float]:
        return driver.run(workload, workload.prompts(self._vocab_size, seed)).summary(workload)

    def _trace(self, driver: CoLocated, console: Console, steps: dict[str, int]) -> None:
        """Record steps of one more round of each workload. `steps`: that the last round took."""
        path: Path = self._args.profile
        num_steps = self._args.profile_steps
        for workload in self._workloads:
            middle = max(1, (steps[workload.name] - num_steps) // 2)
            trace = StepTrace(
                self._args.profile_from or middle, num_steps, kernels=self._config.backend == "cuda"
            )
            with self._told(f"profile: {workload.name}"), trace.attached(driver.built.engine):
                self._once(driver, workload, self._args.rounds + 1)
            stem, _, suffixes = path.name.partition(".")
            trace.write(path.with_name(f"{stem}-{workload.name}.{suffixes or 'json'}"))
            show_trace(console, workload, trace, self._costs, self.ceilings)

    @contextlib.contextmanager
    def _driver(self, role: str) -> Iterator[Driver]:
        with self._told(f"{role}: start"):
            driver: Driver
            if role == "both":
                driver = CoLocated(self._config)
            else:
                driver = Apart(self._flags, self._scratch, self._args.gpus.split(","))
        try:
            yield driver
        finally:
            driver.close()

    @contextlib.contextmanager
    def _told(self, what: str) -> Iterator[None]:
        progress = Progress(
            TextColumn("{task.description}"),
            TimeElapsedColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        if not self._console.is_terminal:
            self._console.print(what, highlight=False)
        with progress:
            progress.add_task(what)
            yield


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog,
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Further flags go to the engine: --max-running, --max-step-tokens, --kv-bytes, --threads, "
        "--graphs, ... as in `baton serve both --help`. On one GPU, role apart needs --kv-fraction 0.4: "
        "two engines share its memory.",
    )
    add = parser.add_argument
    add(
        "--config",
        type=Path,
        metavar="DIR",
        help="directory with a config.json (default: the default model's)",
    )
    add(
        "--workloads",
        type=_names(tuple(MAKERS)),
        default=list(DEFAULT),
        help=f"some of {','.join(MAKERS)} (default {','.join(DEFAULT)})",
    )
    add(
        "--role",
        type=_names(ROLES),
        default=["both"],
        help="both: one engine in this process; apart: a prefill and a decode worker; both,apart: one after "
        "the other (default both)",
    )
    add(
        "--backend", default="cuda" if torch.cuda.is_available() else "cpu", help="(default %(default)s here)"
    )
    add("--rounds", type=int, default=3, help="times that each workload runs; medians count (default 3)")
    add("--scale", type=float, default=1.0, help="factor on requests and lengths, for a CPU 0.05 (default 1)")
    add(
        "--gpus",
        default="",
        metavar="P,D",
        help="role apart: GPUs of the prefill and the decode worker, as 0,1",
    )
    add(
        "--ceilings",
        type=_ceilings,
        metavar="R,P,A",
        help="TB/s read, TFLOP/s of products, of attention (default: measured; attention 0.85 of products)",
    )
    add("--json", type=Path, metavar="FILE", help="write results, environment and settings here")
    add(
        "--profile",
        type=Path,
        metavar="FILE",
        help="role both: one more round of each workload; write steps of it as traces that ui.perfetto.dev "
        "opens, FILE-<workload>.json[.gz], and print where the time goes, by part beside its floor",
    )
    add(
        "--profile-from",
        type=int,
        default=0,
        help="first step of the trace (default: in the middle of a round)",
    )
    add("--profile-steps", type=int, default=30, help="steps of the trace (default 30)")
    return parser


def _names(known: tuple[str, ...]):  # type: ignore[no-untyped-def]
    def names(text: str) -> list[str]:
        chosen = text.split(",")
        if unknown := [name for name in chosen if name not in known]:
            raise argparse.ArgumentTypeError(f"{unknown}: known are {', '.join(known)}")
        return chosen

    return names


def _ceilings(text: str) -> Ceilings:
    read, products, attention = (float(part) * 1e12 for part in text.split(","))
    return Ceilings(read, products, attention)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
