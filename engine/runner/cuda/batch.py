"""A step's rows as the host sends them to the device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from engine.backends.batch import IntArray
from engine.backends.cuda.step_inputs import ROW
from engine.runner.cuda.shapes import StepShape
from engine.step import ScheduledRow


@dataclass(frozen=True, slots=True)
class Batch:
    """One step.

    Attributes:
        shape: padding included.
        rows: ROW[B], decode rows first; then empty places.
        tokens: int32[T], as far as the host knows them.
        num_rows: without empty places.
        context_tokens: sum of the context lengths of the decode rows.
        sampled: rows that are sampled, R of them.
        sample_tokens: int32[R], index of each one's last token.
        sample_slots: int32[R].
        sample_positions: int32[R], of the token to be drawn.
    """

    shape: StepShape
    rows: npt.NDArray[np.void]
    tokens: IntArray
    num_rows: int
    context_tokens: int
    sampled: tuple[ScheduledRow, ...]
    sample_tokens: IntArray
    sample_slots: IntArray
    sample_positions: IntArray

    @property
    def wanted(self) -> IntArray:
        """int32[num_wanted], sample_tokens and others."""
        wanted = np.zeros(self.shape.num_wanted, np.int32)
        wanted[: len(self.sample_tokens)] = self.sample_tokens
        return wanted


def shape_of(rows: Sequence[ScheduledRow], num_decodes: int) -> StepShape:
    """The shape of a step without padding."""
    return StepShape(
        num_rows=len(rows),
        num_decodes=num_decodes,
        num_tokens=num_decodes + sum(row.num_tokens for row in rows[num_decodes:]),
        num_wanted=sum(row.sample for row in rows),
        has_chunks=num_decodes < len(rows),
    )


def decodes_first(rows: Sequence[ScheduledRow], prompts_apart: bool) -> tuple[Sequence[ScheduledRow], int]:
    """Order rows so that those that attention_decode serves come first; how many they are.

    Args:
        rows: those of one token first.
        prompts_apart: a prompt's token goes to attention_prefill even where it is a chunk by itself, so that
            its bits do not depend on how the prompt was cut.
    """
    if not prompts_apart:
        count = next((index for index, row in enumerate(rows) if row.num_tokens != 1), len(rows))
        return rows, count
    decodes = [row for row in rows if row.start >= row.request.num_prompt_tokens and row.num_tokens == 1]
    taken = {row.request.request_id for row in decodes}
    return decodes + [row for row in rows if row.request.request_id not in taken], len(decodes)


def build_batch(
    rows: Sequence[ScheduledRow], num_decodes: int, slots: Sequence[int], shape: StepShape
) -> Batch:
    """Lay out a step.

    Args:
        rows: decode rows first.
        num_decodes: of them.
        slots: of the rows.
        shape: at least shape_of(rows); with more tokens it has more rows, too.
    """
    count = len(rows)
    tokens: list[int] = []
    for row in rows:
        if row.pending:
            tokens.append(0)
        elif row.num_tokens == 1:
            tokens.append(row.request.token_ids[row.start])
        else:
            tokens += row.request.token_ids[row.start : row.start + row.num_tokens]
    num_tokens = len(tokens)
    tokens += [0] * (shape.num_tokens - num_tokens)
    table = np.zeros(shape.num_rows, ROW)
    table["slot"][:count] = slots
    table["slot"][count:] = -1
    table["start"][:count] = [row.start for row in rows]
    lengths = table["tokens"]
    lengths[:count] = [row.num_tokens for row in rows]
    if shape.num_rows > count:
        lengths[-1] = shape.num_tokens - num_tokens
    table["pending"][:count] = [row.pending for row in rows]
    ends = np.cumsum(lengths, dtype=np.int32)
    table["first"] = ends - lengths
    table["decodes"][:num_decodes] = 1
    table["chunk_first"] = np.clip(table["first"], num_decodes, num_tokens)
    contexts = table["start"] + lengths
    wanted = np.fromiter((row.sample for row in rows), np.bool_, count)
    return Batch(
        shape=shape,
        rows=table,
        tokens=np.array(tokens, np.int32),
        num_rows=count,
        context_tokens=int(contexts[:num_decodes].sum()),
        sampled=tuple(rows) if wanted.all() else tuple(row for row in rows if row.sample),
        sample_tokens=(ends[:count] - 1)[wanted],
        sample_slots=table["slot"][:count][wanted],
        sample_positions=contexts[:count][wanted],
    )
