"""Recorded loads: the Azure LLM inference traces (CSV) and Mooncake's (JSONL).

Sources: Patel et al. 2024 (Splitwise), Azure public dataset; Qin et al. 2025 (Mooncake), whose `hash_ids`
name the blocks of 512 tokens of a prompt: equal ids are equal tokens.
"""

from __future__ import annotations

import csv
import functools
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from loadtest.errors import TraceError

MOONCAKE_BLOCK_TOKENS = 512


@dataclass(frozen=True, slots=True)
class TraceRow:
    """One request of a trace.

    Attributes:
        at_s: seconds from the first row.
        input_tokens: length of the prompt, >= 1.
        output_tokens: length of the answer, >= 1.
        hash_ids: names of the prompt's blocks, each `block_tokens` long; empty: all of it is its own.
        block_tokens: 0 without hash_ids.
    """

    at_s: float
    input_tokens: int
    output_tokens: int
    hash_ids: tuple[int, ...] = ()
    block_tokens: int = 0


@dataclass(frozen=True, slots=True)
class TraceScale:
    """How a trace is made to fit.

    Attributes:
        time: times are multiplied by this; 0.5 doubles the rate.
        length: lengths, and the blocks that hash_ids name, are multiplied by this, so that the share of
            a prompt that others share stays.
        max_input: longer prompts are cut to this, tokens; 0: no limit.
        max_output: longer answers are cut to this, tokens; 0: no limit.
    """

    time: float = 1.0
    length: float = 1.0
    max_input: int = 0
    max_output: int = 0


def read_trace(path: Path, scale: TraceScale = TraceScale()) -> list[TraceRow]:
    """Return the rows of a trace in order of time; the format is told by the suffix.

    Raises:
        TraceError: the file cannot be read, or a line is not what the format wants.
    """
    try:
        return list(_read(path, path.stat().st_mtime_ns, scale))
    except OSError as error:
        raise TraceError(f"{path}: {error.strerror}") from error


@functools.lru_cache(maxsize=2)  # a search plans one load many times
def _read(path: Path, mtime_ns: int, scale: TraceScale) -> tuple[TraceRow, ...]:
    read = {".csv": _azure, ".jsonl": _mooncake}.get(path.suffix)
    if read is None:
        raise TraceError(f"{path}: a trace is a .csv (Azure) or a .jsonl (Mooncake)")
    rows = []
    try:
        with path.open(encoding="utf-8", newline="") as file:
            for row in read(file):
                rows.append(row)
    except (ValueError, KeyError, TypeError) as error:
        raise TraceError(f"{path}, row {len(rows) + 1}: {error!r}") from error
    if not rows:
        raise TraceError(f"{path}: no rows")
    rows.sort(key=lambda row: row.at_s)
    return tuple(_scaled(row, rows[0].at_s, scale) for row in rows)


def _scaled(row: TraceRow, start_s: float, scale: TraceScale) -> TraceRow:
    input_tokens = max(1, round(row.input_tokens * scale.length))
    output_tokens = max(1, round(row.output_tokens * scale.length))
    input_tokens = min(input_tokens, scale.max_input or input_tokens)
    block = max(1, round(row.block_tokens * scale.length)) if row.hash_ids else 0
    return TraceRow(
        at_s=(row.at_s - start_s) * scale.time,
        input_tokens=input_tokens,
        output_tokens=min(output_tokens, scale.max_output or output_tokens),
        hash_ids=row.hash_ids[: math.ceil(input_tokens / block)] if block else (),
        block_tokens=block,
    )


def _azure(lines: Iterator[str]) -> Iterator[TraceRow]:
    for row in csv.DictReader(lines):
        whole, _, fraction = row["TIMESTAMP"].partition(".")
        at_s = datetime.fromisoformat(whole + "+00:00").timestamp() + float(f"0.{fraction or 0}")
        yield TraceRow(at_s, max(1, int(row["ContextTokens"])), max(1, int(row["GeneratedTokens"])))


def _mooncake(lines: Iterator[str]) -> Iterator[TraceRow]:
    for line in lines:
        row = json.loads(line)
        yield TraceRow(
            at_s=row["timestamp"] / 1000,
            input_tokens=max(1, int(row["input_length"])),
            output_tokens=max(1, int(row["output_length"])),
            hash_ids=tuple(row.get("hash_ids", ())),
            block_tokens=MOONCAKE_BLOCK_TOKENS,
        )
