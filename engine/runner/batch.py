"""From scheduled rows to token ids and batch metadata."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import numpy as np

from engine.backends.batch import BatchMetadata, IntArray
from engine.step import ScheduledRow


def token_ids(rows: Sequence[ScheduledRow]) -> IntArray:
    """int32[T]: the scheduled tokens of all rows, side by side."""
    tokens = chain.from_iterable(
        row.request.token_ids[row.start : row.start + row.num_tokens] for row in rows
    )
    return np.fromiter(tokens, np.int32)


def sample_rows(rows: Sequence[ScheduledRow]) -> IntArray:
    """int32[R]: index, among the step's tokens, of the last token of each row that is sampled."""
    lasts = np.cumsum([row.num_tokens for row in rows], dtype=np.int32) - np.int32(1)
    return lasts[np.fromiter((row.sample for row in rows), np.bool_, len(rows))]


def batch_metadata(rows: Sequence[ScheduledRow], group: int, block_size: int) -> BatchMetadata:
    """Metadata of one cache group. Rows with one token come first, as SchedulerOutput has them."""
    num_rows = len(rows)
    starts = np.fromiter((row.start for row in rows), np.int32, num_rows)
    lengths = np.fromiter((row.num_tokens for row in rows), np.int32, num_rows)
    ends = starts + lengths
    cu_seqlens_q = np.zeros(num_rows + 1, np.int32)
    np.cumsum(lengths, out=cu_seqlens_q[1:])
    num_blocks = -(-ends // block_size)
    tables = np.full((num_rows, int(num_blocks.max())), -1, np.int32)
    for index, row in enumerate(rows):
        used = int(num_blocks[index])
        tables[index, :used] = row.request.block_ids[group][:used]
    row_of_token = np.repeat(np.arange(num_rows, dtype=np.int32), lengths)
    positions = np.arange(cu_seqlens_q[-1], dtype=np.int32) + (starts - cu_seqlens_q[:-1])[row_of_token]
    slots = tables[row_of_token, positions // block_size] * block_size + positions % block_size
    return BatchMetadata(
        num_decodes=_num_leading_ones(lengths),
        positions=positions,
        slot_mapping=slots,
        cu_seqlens_q=cu_seqlens_q,
        context_lens=ends,
        block_tables=tables,
    )


def _num_leading_ones(lengths: IntArray) -> int:
    longer = np.flatnonzero(lengths != 1)
    return int(longer[0]) if len(longer) else len(lengths)
