"""Which of cuBLASLt's algorithms multiplies by how many rows. Pure: whoever measures comes in.

buckets      numbers of rows that have a choice of their own; others take that of the next larger one
candidates   what the library's heuristics propose for each
same         (invariant) those that give the bits of the reference; the rest is dropped
fastest      of what is left
"""

from __future__ import annotations

import bisect
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from engine.backends.cuda.cublaslt import Algorithm, Config

REFERENCE_ROWS = 256
CANDIDATES = 8
# More is taken only where it pays: times jitter, and the library's order has its reasons.
LEAD = 0.98
# Those that steps are padded to (engine/runner/cuda/shapes.py): a tile that fits 320 rows is slow for 300.
_ROWS = (
    *(1, 2, 4, *range(8, 64, 8), *range(64, REFERENCE_ROWS, 16)),
    *(*range(REFERENCE_ROWS, 512, 32), *range(512, 1024, 64), *range(1024, 2049, 128)),
)
_MOST_OUTPUT_BYTES = 128 << 20


class Proposals(Protocol):
    """A library's algorithms for one shape of weight."""

    def algorithms(self, rows: int, limit: int) -> list[Algorithm]:
        """Those for so many rows that do not cut sums, best first."""
        ...

    def config(self, algorithm: Algorithm) -> Config:
        """What an algorithm is."""
        ...

    def checked(self, algorithm: Algorithm, rows: int) -> Algorithm | None:
        """The algorithm for so many rows, if it can."""
        ...


class Trial(Protocol):
    """Algorithms at work."""

    def same(self, reference: Algorithm, algorithms: Mapping[int, Sequence[Algorithm]]) -> list[list[bool]]:
        """By number of rows, rising: which give every row the bits that `reference` does."""
        ...

    def microseconds(self, rows: int, algorithms: Sequence[Algorithm]) -> list[float]:
        """Of a product of so many rows by each."""
        ...


@dataclass(frozen=True, slots=True)
class Choice:
    """For products of up to `rows` rows; `microseconds` is what it took when it was chosen."""

    rows: int
    algorithm: Algorithm
    microseconds: float


@dataclass(frozen=True, slots=True)
class Choices:
    """All of one shape of weight, by rows, rising; never empty."""

    entries: tuple[Choice, ...]

    def for_rows(self, rows: int) -> Algorithm:
        """The algorithm for so many rows; beyond the last entry, the last one's."""
        index = bisect.bisect_left(self.entries, rows, key=lambda entry: entry.rows)
        return self.entries[min(index, len(self.entries) - 1)].algorithm

    def to_json(self) -> str:
        """For a file."""
        return json.dumps(
            [
                {
                    "rows": entry.rows,
                    "algorithm": entry.algorithm.data.hex(),
                    "workspace_bytes": entry.algorithm.workspace_bytes,
                    "microseconds": round(entry.microseconds, 2),
                }
                for entry in self.entries
            ],
            indent=1,
        )

    @classmethod
    def from_json(cls, text: str) -> Choices:
        """The reverse.

        Raises:
            ValueError: the text is something else.
        """
        try:
            entries = tuple(
                Choice(
                    int(entry["rows"]),
                    Algorithm(bytes.fromhex(entry["algorithm"]), int(entry["workspace_bytes"])),
                    float(entry["microseconds"]),
                )
                for entry in json.loads(text)
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"no choices: {error}") from error
        rows = [entry.rows for entry in entries]
        if not rows or rows != sorted(set(rows)):
            raise ValueError(f"choices for {rows} rows")
        return cls(entries)


def buckets(out_features: int, out_item_bytes: int) -> tuple[int, ...]:
    """Numbers of rows to choose for; as many as a trial's output may hold, but the reference always."""
    most = max(REFERENCE_ROWS, _MOST_OUTPUT_BYTES // (out_features * out_item_bytes))
    return tuple(rows for rows in _ROWS if rows <= most)


def adds_in_order(config: Config) -> bool:
    """Whether each sum over k is one sum: not cut into parts that are added up later."""
    return config.split_k in (0, 1) and config.reduction == 0


def choose(proposals: Proposals, trial: Trial, rows_of: Sequence[int]) -> Choices | None:
    """Choose for each of `rows_of`; None: the library can do nothing for this shape.

    The reference is the first that the library proposes for REFERENCE_ROWS: the same in every process with
    the same library and kind of device.
    """

    def in_order(rows: int) -> list[Algorithm]:
        found = proposals.algorithms(rows, CANDIDATES)
        return [algorithm for algorithm in found if adds_in_order(proposals.config(algorithm))]

    candidates = {rows: in_order(rows) for rows in rows_of}
    reference = next(iter(candidates.get(REFERENCE_ROWS) or in_order(REFERENCE_ROWS)), None)
    if reference is None:
        return None
    for rows, found in candidates.items():
        known = proposals.checked(reference, rows)
        if known is not None and all(known.data != other.data for other in found):
            found.append(known)
    entries = []
    for (rows, found), same in zip(candidates.items(), trial.same(reference, candidates), strict=True):
        fitting = [algorithm for algorithm, fits in zip(found, same, strict=True) if fits]
        if fitting:
            entries.append(_fastest(rows, fitting, trial.microseconds(rows, fitting)))
    return Choices(tuple(entries)) if entries else None


def _fastest(rows: int, algorithms: Sequence[Algorithm], times: Sequence[float]) -> Choice:
    best = 0
    for index in range(1, len(algorithms)):
        if times[index] < LEAD * times[best]:
            best = index
    return Choice(rows, algorithms[best], times[best])
