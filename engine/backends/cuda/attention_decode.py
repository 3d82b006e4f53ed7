"""attention_decode: 1 to 8 new tokens a request against a paged KV pool (cuda/attention_decode.cu)."""

import math
from dataclasses import dataclass

import numpy as np
import torch

from engine.backends.cuda import loader, tensor_map
from engine.backends.cuda.attention_decode_tiles import DecodeShape, DecodeTiles, choose_tiles, split_size
from engine.backends.cuda.dtypes import dtype_code
from engine.backends.cuda.errors import UnsupportedShapeError

_POINTERS = (
    "q", "kv", "block_tables", "splits", "run_start", "run_first", "sinks",
    "out", "partial_out", "partial_stats", "handed_over",
)  # fmt: skip
_PARAMS = np.dtype(
    [(name, np.uint64) for name in _POINTERS]
    + [(name, np.int64) for name in ("block_stride", "first_row", "block_rows")]
    + [(name, np.int32) for name in ("max_blocks", "block_shift", "kv_heads", "group", "queries", "window")]
    + [(name, np.float32) for name in ("scale_log2", "soft_cap")]
)


@dataclass(frozen=True)
class DecodeLimits:
    """How much one step may hold; buffers are sized by it once, so that a step can be a CUDA graph.

    Attributes:
        batch: requests.
        tokens: sum of the requests' context lengths.
    """

    batch: int
    tokens: int


def shape_of(pool: torch.Tensor, num_query_heads: int, queries: int) -> DecodeShape:
    """The build that a pool, a head layout and a number of new tokens need.

    Raises:
        UnsupportedShapeError: names the size that the kernel does not take.
    """
    kv_heads, block_size, head_dim = pool.shape[3:]
    if num_query_heads % kv_heads:
        raise UnsupportedShapeError(f"query heads {num_query_heads} are no multiple of KV heads {kv_heads}")
    return DecodeShape(head_dim, num_query_heads // kv_heads, queries, block_size, dtype_code(pool.dtype))


class AttentionDecode:
    """Decode attention for one pool, head layout and window.

    `plan` runs once a step, on the device; every layer of the step then calls `__call__`.
    All calls of one instance must be on one stream. A captured graph may be replayed with new
    contents of the same block_tables and context_lens, if it captured the plan too.
    """

    def __init__(
        self,
        pool: torch.Tensor,
        *,
        num_query_heads: int,
        queries: int,
        limits: DecodeLimits,
        window: int = 0,
        spread: bool = False,
        tiles: DecodeTiles | None = None,
    ) -> None:
        """Build the kernel and its buffers.

        Args:
            pool: [num_blocks, layers, 2, H_kv, block_size, D], bf16 or fp16, contiguous.
            queries: new tokens of each request, 1 to 8.
            window: positions a token sees, itself included; 0: all.
            spread: cut requests smaller while the batch leaves blocks idle: faster for few short ones, but
                a request's bits then depend on the others in the batch.
            tiles: another build than choose_tiles would pick, for tests and benches.
        Raises:
            UnsupportedShapeError: names the size that the kernel does not take.
        """
        if pool.dim() != 6 or pool.shape[2] != 2 or not pool.is_contiguous():
            raise UnsupportedShapeError(
                f"KV pool of shape {list(pool.shape)}: contiguous [blocks, layers, 2, ...]"
            )
        num_blocks, layers, _, kv_heads, block_size, head_dim = pool.shape
        if num_query_heads % kv_heads:
            raise UnsupportedShapeError(
                f"query heads {num_query_heads} are no multiple of KV heads {kv_heads}"
            )
        if window < 0:
            raise UnsupportedShapeError(f"window {window}: 0 (off) or more")
        self._shape = shape_of(pool, num_query_heads, queries)
        facts = loader.facts()
        self._tiles = tiles or choose_tiles(self._shape, facts)
        module = loader.load("attention_decode", defines=self._tiles.defines(self._shape))
        self._attend = module.kernel("attention_decode")
        self._plan = module.kernel("attention_decode_plan")
        self._pool, self._window, self._limits, self._spread = pool, window, limits, spread
        self._runs = facts.num_sms * self._tiles.blocks
        self._block_rows = layers * 2 * kv_heads * block_size
        self._map = tensor_map.empty()
        if self._tiles.tma:
            self._map = tensor_map.tiled_16bit(
                pool.data_ptr(),
                sizes=(head_dim, num_blocks * self._block_rows),
                strides=(head_dim * 2,),
                box=(64, min(block_size, self._tiles.tile)),
                swizzle=tensor_map.Swizzle.BYTES_128,
            )
        splits = limits.batch + limits.tokens // split_size(head_dim, 1)
        if spread:  # whole splits of a head are no more than its share of runs; each request has two ends
            splits = max(splits, 2 * limits.batch + self._runs // kv_heads)
        rows = splits * kv_heads * self._shape.rows

        def buffer(*size: int) -> torch.Tensor:
            return torch.zeros(size, dtype=torch.int32, device=pool.device)

        self._splits = buffer(splits, 8)
        self._run_start = buffer(self._runs + 1, 4)
        self._run_first = buffer(self._runs, 8)
        self._partial_out = torch.empty(rows, head_dim, dtype=torch.float32, device=pool.device)
        self._partial_stats = torch.empty(rows, 2, dtype=torch.float32, device=pool.device)
        self._handed_over = buffer(self._runs)
        self._may_overlap, self._planned_last = facts.major >= 9, True

    def plan(self, context_lens: torch.Tensor) -> None:
        """Cut the step's work into equal runs; once a step, before the layers.

        Args:
            context_lens: int32[B], new tokens included; 0 for an empty place in the batch.
                Their sum and number must be within the limits: that is not checked here.
        """
        batch = context_lens.shape[0]
        if batch > self._limits.batch:
            raise UnsupportedShapeError(f"batch {batch}: this step was sized for {self._limits.batch}")
        self._plan(
            (1, 1, 1), (1024, 1, 1),
            context_lens, self._splits, self._run_start, self._run_first,
            np.int32(batch), np.int32(self._shape.queries), np.int32(self._window),
            np.int32(self._pool.shape[3]), np.int32(self._runs), np.int32(self._spread),
        )  # fmt: skip
        self._planned_last = True

    def __call__(
        self,
        q: torch.Tensor,
        layer: int,
        block_tables: torch.Tensor,
        out: torch.Tensor,
        *,
        scale: float | None = None,
        soft_cap: float = 0.0,
        sinks: torch.Tensor | None = None,
    ) -> None:
        """Attend in one layer.

        On Hopper and later it may start before the kernel ahead of it on the stream has ended, unless
        that is the plan. So that kernel may write q and the new tokens' keys and values (as
        rope_kv_store does), but not block_tables or older positions of the pool.

        Args:
            q: [B * queries, H, D], the pool's dtype, contiguous.
            block_tables: int32[B, max_blocks], pad -1.
            out: like q; a request with context 0 gets zeros.
            scale: of the scores; None: 1/sqrt(D).
            soft_cap: scores become cap * tanh(score / cap); 0: off.
            sinks: float32[H], logits that take part in the softmax with no value.
        """
        _, layers, _, kv_heads, block_size, head_dim = self._pool.shape
        expected = (block_tables.shape[0] * self._shape.queries, kv_heads * self._shape.group, head_dim)
        if (
            tuple(q.shape) != expected
            or out.shape != q.shape
            or not (q.is_contiguous() and out.is_contiguous())
        ):
            raise UnsupportedShapeError(
                f"q {list(q.shape)}, out {list(out.shape)}: both {list(expected)}, contiguous"
            )
        if not 0 <= layer < layers:
            raise UnsupportedShapeError(f"layer {layer}: the pool has {layers}")
        layer_rows = 2 * kv_heads * block_size
        params = np.zeros(1, dtype=_PARAMS)
        params[0] = (
            q.data_ptr(),
            self._pool.data_ptr() + layer * layer_rows * head_dim * 2,
            block_tables.data_ptr(),
            self._splits.data_ptr(),
            self._run_start.data_ptr(),
            self._run_first.data_ptr(),
            0 if sinks is None else sinks.data_ptr(),
            out.data_ptr(),
            self._partial_out.data_ptr(),
            self._partial_stats.data_ptr(),
            self._handed_over.data_ptr(),
            self._block_rows * head_dim,
            layer * layer_rows,
            self._block_rows,
            block_tables.stride(0),
            int(math.log2(block_size)),
            kv_heads,
            self._shape.group,
            self._shape.queries,
            self._window,
            (scale if scale is not None else head_dim**-0.5) * math.log2(math.e),
            soft_cap,
        )
        self._attend(
            (self._runs, 1, 1), (self._tiles.threads, 1, 1), params, self._map,
            shared_bytes=self._tiles.shared_bytes,
            overlaps=self._may_overlap and not self._planned_last,
        )  # fmt: skip
        self._planned_last = False
