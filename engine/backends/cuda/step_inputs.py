"""step_inputs: a step's inputs from the rows and the state on the device (cuda/step_inputs.cu)."""

from dataclasses import dataclass

import numpy as np
import torch

from engine.backends.cuda import loader
from engine.backends.cuda.source import Build
from engine.backends.cuda.target import DeviceFacts

ROW = np.dtype(
    [
        (name, np.int32)
        for name in ("slot", "start", "tokens", "first", "pending", "decodes", "chunk_first", "step")
    ]
)
"""slot < 0: an empty place, whose tokens store nothing; start, tokens: what runs; first: of the row's tokens
in the step; decodes: attention_decode serves it; chunk_first: first, if only chunks had tokens; step: in the
first row, what LayerMarks.begin gave for a step that tells of its layers."""

_THREADS = 256


@dataclass(frozen=True, slots=True)
class StepBuffers:
    """Inputs of a step, as large as the largest; a step uses the front of each.

    Attributes:
        token_ids, positions, slot_mapping: int32[max_tokens].
        context_lens, decode_lens: int32[max_rows].
        cu_seqlens_q: int32[max_rows + 1].
        block_tables: int32[max_rows, max_blocks].
    """

    token_ids: torch.Tensor
    positions: torch.Tensor
    slot_mapping: torch.Tensor
    context_lens: torch.Tensor
    decode_lens: torch.Tensor
    cu_seqlens_q: torch.Tensor
    block_tables: torch.Tensor

    @classmethod
    def create(cls, max_tokens: int, max_rows: int, max_blocks: int, device: torch.device) -> "StepBuffers":
        """Buffers in which every entry is valid from the start: nothing stored, nothing attended to."""

        def buffer(*size: int, value: int = 0) -> torch.Tensor:
            return torch.full(size, value, dtype=torch.int32, device=device)

        return cls(
            token_ids=buffer(max_tokens),
            positions=buffer(max_tokens),
            slot_mapping=buffer(max_tokens, value=-1),
            context_lens=buffer(max_rows),
            decode_lens=buffer(max_rows),
            cu_seqlens_q=buffer(max_rows + 1),
            block_tables=buffer(max_rows, max_blocks, value=-1),
        )


class DeviceState:
    """What stays on the device between steps, one place (slot) a request.

    Attributes:
        tables: int32[slots, max_blocks].
        last_tokens: int32[slots], drawn last.
    """

    def __init__(self, slots: int, max_blocks: int, block_size: int, device: torch.device) -> None:
        self.tables = torch.full((slots, max_blocks), -1, dtype=torch.int32, device=device)
        self.last_tokens = torch.zeros(slots, dtype=torch.int32, device=device)
        self._block_shift = np.int32(block_size.bit_length() - 1)
        module = loader.load("step_inputs")
        self._inputs = module.kernel("step_inputs")
        self._edits = module.kernel("step_edits")
        self._outputs = module.kernel("step_outputs")

    def edit(self, where: torch.Tensor, blocks: torch.Tensor) -> None:
        """Set entries of the tables: int32[n] indices into the flat table, int32[n] block ids."""
        count = where.shape[0]
        if count:
            self._edits(
                (-(-count // _THREADS), 1, 1), (_THREADS, 1, 1), where, blocks, self.tables, np.int32(count)
            )

    def inputs(self, rows: torch.Tensor, num_rows: int, host_tokens: torch.Tensor, out: StepBuffers) -> None:
        """Write a step's inputs. Modifies the front of each buffer of `out`.

        Args:
            rows: num_rows of ROW, as bytes.
            host_tokens: int32[T]; those of pending rows and empty places are not read.
        """
        self._inputs(
            (num_rows, 1, 1),
            (_THREADS, 1, 1),
            rows,
            host_tokens,
            self.tables,
            self.last_tokens,
            out.token_ids,
            out.positions,
            out.slot_mapping,
            out.context_lens,
            out.decode_lens,
            out.cu_seqlens_q,
            out.block_tables,
            np.int32(self.tables.shape[1]),
            self._block_shift,
        )

    def outputs(self, slots: torch.Tensor, tokens: torch.Tensor) -> None:
        """Keep the tokens, int32[R], drawn for slots, int32[R]."""
        count = slots.shape[0]
        if count:
            self._outputs(
                (-(-count // _THREADS), 1, 1),
                (_THREADS, 1, 1),
                slots,
                tokens,
                self.last_tokens,
                np.int32(count),
            )


def builds(_: DeviceFacts) -> list[Build]:
    """What `make kernels` makes."""
    return [Build("step_inputs", {})]
