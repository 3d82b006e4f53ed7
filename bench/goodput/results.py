"""The file of results: what was measured, with what; parts of several calls in one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from bench.goodput.point import Point, point_json

FORMAT = 1


@dataclass
class Results:
    """Points by key; `runs` says of each call its command, environment and settings."""

    runs: list[dict[str, object]] = field(default_factory=list)
    points: dict[tuple[str, str, float], Point] = field(default_factory=dict)

    def add(self, point: Point) -> None:
        """Add a point; one with the same key is replaced."""
        self.points[point.key] = point

    def of(self, topology: str, load: str) -> list[Point]:
        """Return the points of a part, lowest rate first."""
        found = [point for point in self.points.values() if (point.topology, point.load) == (topology, load)]
        return sorted(found, key=lambda point: point.rate)

    @property
    def loads(self) -> list[str]:
        """Names of the loads that have points, as they came."""
        return list(dict.fromkeys(load for _, load, _ in self.points))

    @property
    def topologies(self) -> list[str]:
        """Names of the clusters that have points, as they came."""
        return list(dict.fromkeys(topology for topology, _, _ in self.points))

    def write(self, path: Path) -> None:
        """Write it whole, or leave the file as it was: a call may be killed at any time."""
        values = {
            "format": FORMAT,
            "runs": self.runs,
            "points": [point_json(self.points[key]) for key in sorted(self.points)],
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(path.name + ".part")
        part.write_text(json.dumps(values, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        part.replace(path)


def read_results(paths: Sequence[Path]) -> Results:
    """Return the points of several files in one; of two with the same key the later file's counts.

    Raises:
        SystemExit: a file is none of ours.
    """
    merged = Results()
    for path in paths:
        try:
            values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            if values["format"] != FORMAT:
                raise ValueError(f"format {values['format']}, expected {FORMAT}")
            points = [Point.from_json(entry) for entry in values["points"]]
            runs = values["runs"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise SystemExit(f"{path}: not a result of this bench: {error!r}") from error
        # The same run may be in two files, since each holds what was measured before it.
        numbers = [_number(merged.runs, entry) for entry in runs]
        for point in points:
            merged.add(replace(point, run=numbers[point.run]))
    return merged


def _number(runs: list[dict[str, object]], entry: dict[str, object]) -> int:
    if entry not in runs:
        runs.append(entry)
    return runs.index(entry)
