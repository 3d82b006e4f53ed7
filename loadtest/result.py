"""The files of a result: NAME.json (all figures), NAME.jsonl (a line each request), NAME.html (a page)."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from loadtest.errors import UsageError
from loadtest.health import Health
from loadtest.leftovers import WorkerSample
from loadtest.measures import Measures
from loadtest.record import Json, Record
from loadtest.scenario import Scenario
from loadtest.verify import Verification

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

FORMAT = 1


@dataclass(frozen=True, slots=True)
class Result:
    """All that is known of a run but its single requests.

    Attributes:
        name: what to call it in reports.
        wall_s: how long it took.
        environment: of the generator.
        workers: worker -> what it is; empty: nobody was asked.
        warnings: what the reader must know before believing the figures.
        blocks_held: worker -> KV blocks in use after the run; None: nobody was asked.
    """

    name: str
    scenario: Scenario
    measures: Measures
    started_unix_s: float
    wall_s: float
    environment: dict[str, str]
    workers: dict[str, str] = field(default_factory=dict)
    healths: list[Health] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    verification: Verification | None = None
    blocks_held: dict[str, int] | None = None
    samples: list[WorkerSample] = field(default_factory=list)

    @property
    def failures(self) -> list[str]:
        """What makes the run a failure, in words; errors of requests alone do not."""
        found = []
        if self.verification is not None and self.verification.mismatches:
            found.append(f"{len(self.verification.mismatches)} answers differ from those given alone")
        if self.verification is not None and self.verification.unasked:
            found.append(f"{self.verification.unasked} prompts got no answer alone")
        held = {worker: blocks for worker, blocks in (self.blocks_held or {}).items() if blocks}
        if held:
            found.append("KV blocks left: " + ", ".join(f"{name} {blocks}" for name, blocks in held.items()))
        return found


def write_json(path: Path, result: DataclassInstance) -> None:
    """Write a result's figures."""
    values = {"format": FORMAT, **asdict(result)}
    path.write_text(json.dumps(values, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def write_records(path: Path, records: Iterable[Record]) -> None:
    """Write a line each request."""
    with path.open("w", encoding="utf-8") as file:
        for record in records:
            file.write(json.dumps(record.to_json(), separators=(",", ":"), ensure_ascii=False) + "\n")


def read_json(path: Path) -> dict[str, Json]:
    """Return a result's figures as written.

    Raises:
        UsageError: there is no such file, or it is not a result.
    """
    try:
        values: dict[str, Json] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: not a result: {error}") from error
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        raise UsageError(f"{path}: not a result of this harness")
    return values
