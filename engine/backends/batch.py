"""What one step runs, as the attention operations need it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class BatchMetadata:
    """Rows of one step over one cache group, on the host.

    Rows with one query token (decode) come first, then chunks; the tokens of a row lie side by side.

    Attributes:
        num_decodes: leading rows with exactly one query token.
        positions: int32[T], position of each token in its request.
        slot_mapping: int32[T], block_id * block_size + offset where the token's K and V go.
        cu_seqlens_q: int32[B + 1], first token of each row; the last entry is T.
        context_lens: int32[B], tokens whose KV is present once this step has stored its own.
        block_tables: int32[B, max_blocks], block ids in order of position, pad -1.
    """

    num_decodes: int
    positions: IntArray
    slot_mapping: IntArray
    cu_seqlens_q: IntArray
    context_lens: IntArray
    block_tables: IntArray

    @property
    def num_tokens(self) -> int:
        """T, query tokens over all rows."""
        return len(self.positions)

    @property
    def num_rows(self) -> int:
        """B."""
        return len(self.context_lens)
