"""sampling: from float32 logits to tokens that stay on the device (cuda/sampling.cu)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch

from engine.backends.cuda import loader
from engine.backends.cuda.errors import UnsupportedShapeError
from engine.backends.cuda.source import Build
from engine.backends.cuda.target import DeviceFacts

MAX_LOGPROBS = 20
IN_PROMPT = -(1 << 15)  # bit 15 of a history entry, as an int16
_BLOCK = (512, 1, 1)
ROW = np.dtype(
    [("seed", np.uint64), ("position", np.uint32), ("top_k", np.int32)]
    + [
        (name, np.float32)
        for name in ("temperature", "top_p", "min_p", "repetition", "presence", "frequency")
    ]
    + [
        (name, np.int32)
        for name in (
            "history",
            "adjusted",
            "bias_begin",
            "bias_end",
            "mask_begin",
            "mask_end",
            "allowed",
            "unused",
        )
    ]
)


@dataclass(frozen=True)
class SamplingRow:
    """How one row is drawn; the defaults are greedy with nothing adjusted.

    Attributes:
        seed: 64 bits. position: index of the drawn token in the request's tokens.
        history: row of the history table that counts this request's tokens; None: not counted,
            which penalties need.
        masked: tokens that must not be drawn.
        allowed: row of the bitmasks that names the tokens which may be drawn; None: all.
    """

    temperature: float = 0.0
    seed: int = 0
    position: int = 0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    history: int | None = None
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    masked: Sequence[int] = ()
    allowed: int | None = None

    @property
    def adjusted(self) -> bool:
        """Whether its logits are changed before the draw."""
        penalties = (self.repetition_penalty, self.presence_penalty, self.frequency_penalty) != (
            1.0,
            0.0,
            0.0,
        )
        return penalties or bool(self.logit_bias) or bool(self.masked) or self.allowed is not None


class RowTable(Protocol):
    """A step's rows on the device.

    Attributes:
        num_rows: R.
        any_adjusted: whether a row is.
        table: R of ROW, as bytes.
        bias_tokens, bias_values, masked: lists that the rows point into.
    """

    num_rows: int
    any_adjusted: bool
    table: torch.Tensor
    bias_tokens: torch.Tensor
    bias_values: torch.Tensor
    masked: torch.Tensor


class SamplingRows:
    """A RowTable made from rows."""

    def __init__(self, rows: Sequence[SamplingRow], device: torch.device) -> None:
        """Upload the rows.

        Raises:
            UnsupportedShapeError: penalties without a history row.
        """
        table = np.zeros(len(rows), dtype=ROW)
        bias_tokens: list[int] = []
        bias_values: list[float] = []
        masked: list[int] = []
        for i, row in enumerate(rows):
            penalties = (row.repetition_penalty, row.presence_penalty, row.frequency_penalty)
            if penalties != (1.0, 0.0, 0.0) and row.history is None:
                raise UnsupportedShapeError(f"row {i}: penalties need a row of the history table")
            starts = (len(bias_tokens), len(masked))
            bias_tokens += row.logit_bias.keys()
            bias_values += row.logit_bias.values()
            masked += row.masked
            table[i] = (
                row.seed, row.position, row.top_k, row.temperature, row.top_p, row.min_p, *penalties,
                -1 if row.history is None else row.history, row.adjusted,
                starts[0], len(bias_tokens), starts[1], len(masked),
                0 if row.allowed is None else row.allowed + 1, 0,
            )  # fmt: skip
        self.num_rows = len(rows)
        self.any_adjusted = any(row.adjusted for row in rows)
        self.table = torch.from_numpy(table.view(np.uint8)).to(device)
        self.bias_tokens = torch.tensor(bias_tokens, dtype=torch.int32, device=device)
        self.bias_values = torch.tensor(bias_values, dtype=torch.float32, device=device)
        self.masked = torch.tensor(masked, dtype=torch.int32, device=device)


def new_history(slots: int, vocabulary: int, device: torch.device) -> torch.Tensor:
    """Token counts of `slots` requests: int16[slots, V]. Fill a prompt with IN_PROMPT at its tokens."""
    return torch.zeros(slots, vocabulary, dtype=torch.int16, device=device)


def sample(
    logits: torch.Tensor,
    rows: RowTable,
    history: torch.Tensor | None = None,
    work: torch.Tensor | None = None,
    allowed: torch.Tensor | None = None,
) -> torch.Tensor:
    """Draw a token for each row; leaves `logits` as they are.

    Modifies `history` (the drawn token is counted) and, for adjusted rows, `work`.

    Args:
        logits: float32[R, V], contiguous.
        history: from new_history; needed where a row names a row of it.
        work: like logits; None: made here if any row is adjusted.
        allowed: int32[bitmasks, ceil(V / 32)], bit i % 32 of word i // 32 is 1 if token i may be drawn;
            needed where a row names a bitmask of it (in ROW: 1 + its index, 0 for none).
    Returns:
        int32[R]; -1 where the logits hold NaN or +infinity, or nothing may be drawn.
    """
    if logits.dim() != 2 or logits.dtype != torch.float32 or not logits.is_contiguous():
        raise UnsupportedShapeError(f"logits {logits.dtype} {list(logits.shape)}: contiguous float32 [R, V]")
    if logits.shape[0] != rows.num_rows:
        raise UnsupportedShapeError(f"logits of {logits.shape[0]} rows for {rows.num_rows} requests")
    module = loader.load("sampling")
    grid, vocabulary = (rows.num_rows, 1, 1), np.int32(logits.shape[1])
    tokens = torch.empty(rows.num_rows, dtype=torch.int32, device=logits.device)
    if rows.any_adjusted:
        work = torch.empty_like(logits) if work is None else work
        lists = (rows.bias_tokens, rows.bias_values, rows.masked, allowed)
        module.kernel("sampling_adjust")(grid, _BLOCK, logits, work, rows.table, history, *lists, vocabulary)
    if rows.num_rows:
        module.kernel("sampling")(grid, _BLOCK, logits, work, rows.table, history, tokens, vocabulary)
    return tokens


def logprobs(
    logits: torch.Tensor, wishes: torch.Tensor, tokens: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities under the raw logits.

    Args:
        logits: float32[R, V], contiguous.
        wishes: int32[R], most likely tokens wanted, up to 20; < 0: nothing for this row.
        tokens: int32[R], drawn.
    Returns:
        values float32[R, 21], ids int32[R, 21]: the drawn token, then the most likely, best first,
        equal ones in order of id; what was not wished for is undefined.
    """
    values = torch.empty(logits.shape[0], MAX_LOGPROBS + 1, dtype=torch.float32, device=logits.device)
    ids = torch.empty_like(values, dtype=torch.int32)
    if logits.shape[0]:
        kernel = loader.load("sampling").kernel("sampling_logprobs")
        vocabulary = np.int32(logits.shape[1])
        kernel((logits.shape[0], 1, 1), _BLOCK, logits, wishes, tokens, values, ids, vocabulary)
    return values, ids


def builds(_: DeviceFacts) -> list[Build]:
    """What `make kernels` makes."""
    return [Build("sampling", {})]
