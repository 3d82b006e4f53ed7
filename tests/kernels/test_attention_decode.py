"""attention_decode against float64, over poisoned pools, and its bitwise promises."""

from dataclasses import dataclass

import pytest
import torch

from engine.backends.base import RopeTable
from engine.backends.cuda import errors, loader
from engine.backends.cuda.attention_decode import AttentionDecode, DecodeLimits, shape_of
from engine.backends.cuda.attention_decode_tiles import choose_tiles
from engine.backends.cuda.rope_kv_store import rope_kv_store

LENGTHS = (1, 9, 63, 64, 65, 300, 511, 512, 513, 1100, 2049, 5000, 0)


@dataclass
class Step:
    pool: torch.Tensor
    q: torch.Tensor
    block_tables: torch.Tensor
    context_lens: torch.Tensor
    heads: int
    queries: int

    def run(
        self, layer: int, *, tma: bool | None = None, window: int = 0, spread: bool = False, **options: object
    ) -> torch.Tensor:
        limits = DecodeLimits(self.context_lens.shape[0], int(self.context_lens.sum()))
        tiles = choose_tiles(shape_of(self.pool, self.heads, self.queries), loader.facts(), tma=tma)
        attend = AttentionDecode(
            self.pool,
            num_query_heads=self.heads,
            queries=self.queries,
            limits=limits,
            window=window,
            spread=spread,
            tiles=tiles,
        )
        out = torch.full_like(self.q, torch.nan)
        attend.plan(self.context_lens)
        attend(self.q, layer, self.block_tables, out, **options)  # type: ignore[arg-type]
        return out


def make_step(
    lengths: tuple[int, ...],
    *,
    head_dim: int,
    heads: int,
    kv_heads: int,
    queries: int = 1,
    block_size: int = 64,
    dtype: torch.dtype = torch.bfloat16,
    layers: int = 2,
) -> Step:
    """A pool whose unused positions are NaN, random tables, random queries."""
    blocks = [-(-length // block_size) for length in lengths]
    total = sum(blocks) + 3
    pool = torch.full(
        (total, layers, 2, kv_heads, block_size, head_dim), torch.nan, dtype=dtype, device="cuda"
    )
    tables = torch.full((len(lengths), max(blocks) + 2), -1, dtype=torch.int32)
    order = torch.randperm(total)
    used = 0
    for i, length in enumerate(lengths):
        mine = order[used : used + blocks[i]]
        used += blocks[i]
        tables[i, : blocks[i]] = mine.int()
        for j, block in enumerate(mine.tolist()):
            filled = min(block_size, length - j * block_size)
            shape = pool[block, :, :, :, :filled].shape
            pool[block, :, :, :, :filled] = torch.randn(shape, device="cuda", dtype=dtype)
    q = torch.randn(len(lengths) * queries, heads, head_dim, device="cuda", dtype=dtype)
    lens = torch.tensor(lengths, dtype=torch.int32, device="cuda")
    return Step(pool, q, tables.cuda(), lens, heads, queries)


def reference(
    step: Step, layer: int, *, window: int = 0, scale: float | None = None, soft_cap: float = 0.0,
    sinks: torch.Tensor | None = None,
) -> torch.Tensor:  # fmt: skip
    """The same in float64, request by request."""
    _, _, _, kv_heads, block_size, head_dim = step.pool.shape
    out = torch.zeros(step.q.shape, dtype=torch.float64, device="cuda")
    n = step.queries
    for i, length in enumerate(step.context_lens.tolist()):
        if length == 0:
            continue
        ids = step.block_tables[i, : -(-length // block_size)].long()
        k, v = (
            step.pool[ids, layer, which]
            .permute(1, 0, 2, 3)
            .reshape(kv_heads, -1, head_dim)[:, :length]
            .double()
            for which in (0, 1)
        )
        q = step.q[i * n : (i + 1) * n].double().view(n, kv_heads, -1, head_dim)
        scores = torch.einsum("nhgd,htd->nhgt", q, k) * (scale or head_dim**-0.5)
        if soft_cap:
            scores = soft_cap * torch.tanh(scores / soft_cap)
        at = torch.arange(length, device="cuda")
        last = torch.arange(length - n, length, device="cuda")[:, None]
        seen = at <= last
        if window:
            seen &= at > last - window
        scores = scores.masked_fill(~seen[:, None, None], -torch.inf)
        if sinks is not None:
            column = sinks.double().view(1, kv_heads, -1, 1).expand(n, -1, -1, 1)
            scores = torch.cat([scores, column], dim=-1)
        weights = scores.softmax(dim=-1).nan_to_num(0.0)[..., :length]
        out[i * n : (i + 1) * n] = torch.einsum("nhgt,htd->nhgd", weights, v).reshape(n, -1, head_dim)
    return out


def check(out: torch.Tensor, expected: torch.Tensor) -> None:
    assert not out.isnan().any(), "an output was not written, or a poisoned position was read"
    error = (out.double() - expected).norm() / expected.norm()
    bound = 6e-3 if out.dtype == torch.bfloat16 else 1e-3
    assert error < bound, f"relative error {error:.2e}"
    worst = (out.double() - expected).abs().max() / expected.abs().max()
    assert worst < 4 * bound, f"worst element {worst:.2e}"


@pytest.mark.parametrize("tma", [True, False])
@pytest.mark.parametrize(
    ("head_dim", "heads", "kv_heads", "queries", "block_size", "dtype"),
    [
        (128, 32, 8, 1, 64, torch.bfloat16),
        (128, 8, 8, 1, 16, torch.float16),
        (128, 8, 1, 1, 32, torch.bfloat16),
        (128, 16, 1, 1, 128, torch.bfloat16),
        (128, 8, 2, 4, 64, torch.bfloat16),
        (128, 16, 2, 5, 32, torch.float16),
        (128, 16, 1, 8, 64, torch.bfloat16),
        (64, 9, 3, 1, 64, torch.bfloat16),
        (64, 14, 2, 8, 16, torch.bfloat16),
        (64, 12, 2, 2, 128, torch.float16),
        (96, 6, 2, 1, 64, torch.bfloat16),
        (96, 16, 2, 3, 32, torch.bfloat16),
        (256, 8, 4, 1, 64, torch.bfloat16),
        (256, 16, 1, 1, 16, torch.float16),
        (256, 8, 1, 4, 128, torch.bfloat16),
        (256, 16, 1, 8, 64, torch.bfloat16),
    ],
)
def test_matches_float64(
    head_dim: int, heads: int, kv_heads: int, queries: int, block_size: int, dtype: torch.dtype, tma: bool
) -> None:
    lengths = tuple(length for length in LENGTHS if length == 0 or length >= queries)
    step = make_step(
        lengths, head_dim=head_dim, heads=heads, kv_heads=kv_heads, queries=queries, block_size=block_size,
        dtype=dtype,
    )  # fmt: skip
    check(step.run(1, tma=tma), reference(step, 1))


@pytest.mark.parametrize(
    "lengths", [(1,), (64,), (1000,), (1024,) * 8, (300, 5, 4097, 0, 63), (20000, 9)], ids=str
)
@pytest.mark.parametrize(
    ("head_dim", "heads", "kv_heads", "queries"),
    [(128, 32, 8, 1), (64, 9, 3, 1), (256, 8, 4, 1), (128, 16, 2, 5)],
)
def test_few_tokens_spread_over_the_device(
    lengths: tuple[int, ...], head_dim: int, heads: int, kv_heads: int, queries: int
) -> None:
    lengths = tuple(length for length in lengths if length == 0 or length >= queries) or (queries,)
    step = make_step(lengths, head_dim=head_dim, heads=heads, kv_heads=kv_heads, queries=queries)
    check(step.run(1, spread=True), reference(step, 1))
    check(step.run(0, spread=True, window=100), reference(step, 0, window=100))


@pytest.mark.sanitize
def test_a_spread_request_in_many_launches() -> None:
    step = make_step((1024,), head_dim=128, heads=16, kv_heads=8, layers=1)
    attend = AttentionDecode(
        step.pool, num_query_heads=16, queries=1, limits=DecodeLimits(1, 1024), spread=True
    )
    attend.plan(step.context_lens)
    outs = [torch.full_like(step.q, torch.nan) for _ in range(20)]
    for out in outs:
        attend(step.q, 0, step.block_tables, out)
    check(outs[0], reference(step, 0))
    assert all(torch.equal(out, outs[0]) for out in outs)


def test_a_full_device_has_nothing_to_spread() -> None:
    step = make_step((3000,) * 64, head_dim=128, heads=32, kv_heads=8, layers=1)
    assert torch.equal(step.run(0, spread=True), step.run(0))


@pytest.mark.parametrize("queries", [1, 4])
@pytest.mark.parametrize("window", [1, 64, 100, 700])
def test_window(window: int, queries: int) -> None:
    step = make_step((4, 64, 99, 700, 701, 1500, 4000), head_dim=128, heads=8, kv_heads=2, queries=queries)
    check(step.run(0, window=window), reference(step, 0, window=window))


@pytest.mark.sanitize
@pytest.mark.parametrize("head_dim", [64, 128])
def test_soft_cap_sinks_and_scale(head_dim: int) -> None:
    step = make_step((1, 70, 513, 3000), head_dim=head_dim, heads=8, kv_heads=2)
    sinks = torch.randn(8, device="cuda") * 3
    options = {"soft_cap": 5.0, "sinks": sinks, "scale": 0.3}
    check(step.run(0, **options), reference(step, 0, **options))
    with_window = step.run(0, window=128, **options)
    check(with_window, reference(step, 0, window=128, **options))


@pytest.mark.sanitize
@pytest.mark.parametrize(("heads", "kv_heads", "queries"), [(8, 2, 4), (16, 2, 8), (16, 1, 8)], ids=str)
def test_many_rows(heads: int, kv_heads: int, queries: int) -> None:
    """16, 64 and 128 rows: sums in shared and in device memory, key groups that merge or do not."""
    step = make_step((8, 70, 513, 3000), head_dim=128, heads=heads, kv_heads=kv_heads, queries=queries)
    check(step.run(0), reference(step, 0))


def test_split_size_doubles_for_a_long_request() -> None:
    step = make_step((70000, 3), head_dim=128, heads=4, kv_heads=1, layers=1)
    check(step.run(0), reference(step, 0))


def test_many_launches_of_a_long_request_agree() -> None:
    step = make_step((131072,), head_dim=128, heads=32, kv_heads=8, layers=1)
    first = step.run(0)
    check(first, reference(step, 0))
    attend = AttentionDecode(step.pool, num_query_heads=32, queries=1, limits=DecodeLimits(1, 131072))
    attend.plan(step.context_lens)
    outs = [torch.full_like(step.q, torch.nan) for _ in range(200)]
    for out in outs:
        attend(step.q, 0, step.block_tables, out)
    assert all(torch.equal(out, first) for out in outs)


def test_large_scores_do_not_overflow() -> None:
    step = make_step((2000, 77), head_dim=128, heads=8, kv_heads=2)
    step.q *= 60
    check(step.run(0), reference(step, 0))


@pytest.mark.parametrize("tma", [True, False])
@pytest.mark.parametrize(
    ("head_dim", "heads", "kv_heads", "queries"),
    [(128, 32, 8, 1), (64, 14, 2, 1), (256, 8, 4, 1), (128, 8, 1, 8)],
)
def test_alone_and_among_255_others_is_the_same_bits(
    head_dim: int, heads: int, kv_heads: int, queries: int, tma: bool
) -> None:
    lengths = torch.randint(queries, 3000, (256,))
    lengths[[17, 101]] = torch.tensor([9000, 2049])  # of many splits, which cross runs when alone
    step = make_step(
        tuple(lengths.tolist()), head_dim=head_dim, heads=heads, kv_heads=kv_heads, queries=queries, layers=1
    )
    together = step.run(0, tma=tma).view(256, queries, heads, head_dim)
    for i in (0, 17, 101, 255):
        alone = Step(
            step.pool, step.q[i * queries : (i + 1) * queries].clone(), step.block_tables[i : i + 1].clone(),
            step.context_lens[i : i + 1].clone(), heads, queries,
        )  # fmt: skip
        assert torch.equal(alone.run(0, tma=tma), together[i])


def test_follows_the_store_of_new_keys_without_waiting_for_its_end() -> None:
    step = make_step((4095, 2000, 64, 1, 513), head_dim=128, heads=8, kv_heads=2, layers=4)
    qkv = torch.randn(4, 5, 12 * 128, device="cuda", dtype=torch.bfloat16)
    at = step.context_lens - 1
    slots = step.block_tables.gather(1, (at // 64).long()[:, None])[:, 0] * 64 + at % 64
    rope = RopeTable(torch.randn(4096, 128, device="cuda"), 128)
    attend = AttentionDecode(step.pool, num_query_heads=8, queries=1, limits=DecodeLimits(5, 8192))

    def layer(index: int, wait: bool) -> torch.Tensor:
        q = rope_kv_store(qkv[index], at, slots.int(), step.pool, index, rope, None)
        if wait:
            torch.cuda.synchronize()
            attend.plan(step.context_lens)  # the launch after a plan does not overlap
        out = torch.full_like(q, torch.nan)
        attend(q, index, step.block_tables, out)
        return out

    apart = [layer(index, True) for index in range(4)]
    for _ in range(20):
        for block, slot in enumerate(slots.tolist()):
            step.pool[slot // 64, :, :, :, slot % 64] = torch.nan
            assert not step.pool[slot // 64, 0, 0, 0, : slot % 64].isnan().any(), block
        together = [layer(index, False) for index in range(4)]
        for out, expected in zip(together, apart, strict=True):
            assert torch.equal(out, expected)


@pytest.mark.sanitize
def test_graph_replay_with_new_lengths_is_the_same_bits() -> None:
    step = make_step((900, 2000, 31, 4097), head_dim=128, heads=8, kv_heads=2)
    attend = AttentionDecode(step.pool, num_query_heads=8, queries=1, limits=DecodeLimits(4, 8192))
    lens = step.context_lens.clone()
    out = torch.empty_like(step.q)
    attend.plan(lens)
    attend(step.q, 0, step.block_tables, out)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        attend.plan(lens)
        for layer in (0, 1):
            attend(step.q, layer, step.block_tables, out)
    for shorter in (0, 1, 30):
        lens.copy_(step.context_lens - shorter)
        out.fill_(torch.nan)
        graph.replay()
        step_now = Step(step.pool, step.q, step.block_tables, lens.clone(), 8, 1)
        assert torch.equal(out, step_now.run(1))


def test_refuses_what_it_cannot_do() -> None:
    pool = torch.zeros(2, 1, 2, 2, 64, 80, dtype=torch.bfloat16, device="cuda")
    with pytest.raises(errors.UnsupportedShapeError, match="head_dim 80"):
        AttentionDecode(pool, num_query_heads=4, queries=1, limits=DecodeLimits(1, 64))
