"""attention_prefill against float64, over poisoned pools; and the same bits whatever surrounds a request."""

from dataclasses import dataclass, field

import pytest
import torch

if not torch.cuda.is_available():
    pytest.skip("needs an NVIDIA GPU", allow_module_level=True)

from engine.backends.cuda.attention_prefill import AttentionPrefill

pytestmark = pytest.mark.gpu

NAN = float("nan")
LAYERS, LAYER = 2, 1
# (tokens in the chunk, keys in all): odd lengths, one token, whole blocks, whole tiles, none or much before.
MIX = [(1, 1), (1, 300), (17, 17), (64, 64), (100, 355), (128, 1024), (129, 129), (200, 963), (33, 2000)]
KERNELS = [False, True] if torch.cuda.get_device_capability() == (9, 0) else [True]


@dataclass(frozen=True)
class Layer:
    heads: int = 8
    kv_heads: int = 2
    dim: int = 128
    block: int = 64
    dtype: torch.dtype = torch.bfloat16
    window: int | None = None
    soft_cap: float | None = None
    sinks: bool = False


@dataclass
class Batch:
    """Requests with their keys in a pool whose every other element is NaN."""

    layer: Layer
    requests: list[tuple[int, int]]
    seed: int
    steep: bool = False  # early keys outweigh late ones by hundreds of powers of two
    q: torch.Tensor = field(init=False)
    pool: torch.Tensor = field(init=False)
    tables: torch.Tensor = field(init=False)

    def __post_init__(self) -> None:
        shape = self.layer
        random = torch.Generator("cuda").manual_seed(self.seed)
        needed = [-(-keys // shape.block) for _, keys in self.requests]
        num_blocks = sum(needed) + 5
        ids = torch.randperm(num_blocks, generator=random, device="cuda").int()
        self.q = torch.randn(
            sum(n for n, _ in self.requests), shape.heads, shape.dim, generator=random, device="cuda"
        ).to(shape.dtype)
        pool_shape = (num_blocks, LAYERS, 2, shape.kv_heads, shape.block, shape.dim)
        self.pool = torch.full(pool_shape, NAN, dtype=shape.dtype, device="cuda")
        self.tables = torch.full((len(needed), max(needed) + 3), -1, dtype=torch.int32, device="cuda")
        self.keys, self.values = [], []
        start = 0
        for row, ((tokens, total), blocks) in enumerate(zip(self.requests, needed, strict=True)):
            kv = torch.randn(2, shape.kv_heads, total, shape.dim, generator=random, device="cuda").to(
                shape.dtype
            )
            kv[0] *= 1.5  # so that the softmax is not flat
            if self.steep:
                kv[0] *= torch.linspace(40, 0.1, total, device="cuda", dtype=shape.dtype)[:, None]
                kv[0, :, : total // 8] *= 4
            mine = ids[start : start + blocks]
            start += blocks
            self.tables[row, :blocks] = mine
            # Blocks that the window has left for good are given back: NaN, and out of the table.
            gone = max(0, total - tokens + 1 - shape.window) // shape.block if shape.window else 0
            for i, block in enumerate(mine.tolist()):
                piece = kv[:, :, i * shape.block : (i + 1) * shape.block]
                if i >= gone:
                    self.pool[block, LAYER, :, :, : piece.shape[2]] = piece
                else:
                    self.tables[row, i] = -1
            self.keys.append(kv[0])
            self.values.append(kv[1])
        self.sinks = torch.randn(shape.heads, generator=random, device="cuda") * 2 if shape.sinks else None

    def cu_seqlens_q(self) -> torch.Tensor:
        return torch.tensor([0, *(n for n, _ in self.requests)], device="cuda").cumsum(0).int()

    def context_lens(self) -> torch.Tensor:
        return torch.tensor([keys for _, keys in self.requests], dtype=torch.int32, device="cuda")

    def reference(self) -> torch.Tensor:
        shape = self.layer
        outs = []
        for (tokens, total), q, keys, values in zip(
            self.requests, self.q.split([n for n, _ in self.requests]), self.keys, self.values, strict=True
        ):
            group = shape.heads // shape.kv_heads
            k = keys.double().repeat_interleave(group, 0)
            v = values.double().repeat_interleave(group, 0)
            scores = q.double().transpose(0, 1) @ k.transpose(1, 2) * shape.dim**-0.5
            if shape.soft_cap:
                scores = shape.soft_cap * torch.tanh(scores / shape.soft_cap)
            at = torch.arange(total - tokens, total, device="cuda")[:, None]
            key = torch.arange(total, device="cuda")[None]
            hidden = key > at
            if shape.window:
                hidden |= key <= at - shape.window
            scores = scores.masked_fill(hidden, -torch.inf)
            if self.sinks is not None:
                sink = self.sinks.double()[:, None, None].expand(-1, tokens, 1)
                scores = torch.cat([scores, sink], -1)
            outs.append((scores.softmax(-1)[:, :, :total] @ v).transpose(0, 1))
        return torch.cat(outs)


def attention_of(shape: Layer, portable: bool) -> AttentionPrefill:
    return AttentionPrefill(
        num_heads=shape.heads,
        num_kv_heads=shape.kv_heads,
        head_dim=shape.dim,
        block_size=shape.block,
        dtype=shape.dtype,
        window=shape.window,
        soft_cap=shape.soft_cap,
        sinks=shape.sinks,
        portable=portable,
    )


def attend(
    batch: Batch,
    portable: bool,
    *,
    q: torch.Tensor | None = None,
    cu_seqlens_q: torch.Tensor | None = None,
    context_lens: torch.Tensor | None = None,
    tables: torch.Tensor | None = None,
) -> torch.Tensor:
    attention = attention_of(batch.layer, portable)
    q = batch.q if q is None else q
    cu_seqlens_q = batch.cu_seqlens_q() if cu_seqlens_q is None else cu_seqlens_q
    context_lens = batch.context_lens() if context_lens is None else context_lens
    tables = batch.tables if tables is None else tables
    out = torch.full(q.shape, NAN, dtype=q.dtype, device="cuda")
    plan = attention.plan(cu_seqlens_q, context_lens, q.shape[0])
    attention(q, batch.pool, LAYER, tables, plan, out, batch.sinks)
    first = out.clone()
    out.fill_(NAN)
    attention(q, batch.pool, LAYER, tables, plan, out, batch.sinks)  # the plan's counters are back at zero
    torch.cuda.synchronize()
    assert torch.equal(first.view(torch.int16), out.view(torch.int16)), "two launches differ"
    return out


def check(batch: Batch, portable: bool) -> None:
    out, reference = attend(batch, portable), batch.reference()
    assert not out.isnan().any()
    limit = 6e-3 if batch.layer.dtype is torch.bfloat16 else 1e-3
    for request, mine, right in zip(
        batch.requests,
        out.split([n for n, _ in batch.requests]),
        reference.split([n for n, _ in batch.requests]),
        strict=True,
    ):
        error = float((mine.double() - right).norm() / right.norm())
        assert error < limit, f"{batch.layer} request {request}: relative error {error:.2e}"


LAYERS_TO_CHECK = [
    *(Layer(dim=dim, dtype=dtype) for dim in (64, 96, 128, 256) for dtype in (torch.bfloat16, torch.float16)),
    *(Layer(block=block) for block in (16, 32, 128)),
    *(Layer(dim=256, block=block) for block in (16, 32, 128)),
    *(Layer(dim=64, block=16, heads=9, kv_heads=3), Layer(dim=64, heads=16, kv_heads=1)),
    *(Layer(heads=heads, kv_heads=2) for heads in (2, 4, 12, 14, 32)),
    Layer(window=100),
    Layer(window=1),
    Layer(dim=64, window=300, block=16, sinks=True, heads=16, kv_heads=2),
    Layer(dim=256, window=64, soft_cap=20.0, heads=4, kv_heads=1),
    Layer(soft_cap=5.0),
    Layer(sinks=True),
    Layer(dim=96, sinks=True, soft_cap=30.0, window=129, dtype=torch.float16),
]


@pytest.mark.parametrize("portable", KERNELS, ids=lambda p: "portable" if p else "sm90")
@pytest.mark.parametrize("layer", LAYERS_TO_CHECK, ids=str)
def test_matches_float64(layer: Layer, portable: bool) -> None:
    check(Batch(layer, MIX, seed=torch.seed() % 2**31), portable)


@pytest.mark.parametrize("portable", KERNELS, ids=lambda p: "portable" if p else "sm90")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("dim", [64, 128, 256])
def test_scores_that_leap(dim: int, dtype: torch.dtype, portable: bool) -> None:
    check(Batch(Layer(dim=dim, dtype=dtype), [*MIX, (1000, 1300), (300, 1500)], seed=6, steep=True), portable)


@pytest.mark.parametrize("portable", KERNELS, ids=lambda p: "portable" if p else "sm90")
def test_many_requests_of_random_lengths(portable: bool) -> None:
    random = torch.Generator().manual_seed(torch.seed() % 2**31)
    tokens = torch.randint(1, 200, (70,), generator=random).tolist()
    before = torch.randint(0, 500, (70,), generator=random).tolist()
    check(Batch(Layer(), [(n, n + b) for n, b in zip(tokens, before, strict=True)], seed=7), portable)


@pytest.mark.parametrize("portable", KERNELS, ids=lambda p: "portable" if p else "sm90")
@pytest.mark.parametrize("dim", [64, 128, 256])
def test_alone_equals_among_others(dim: int, portable: bool) -> None:
    batch = Batch(Layer(dim=dim), MIX * 3, seed=3)
    together = attend(batch, portable).split([n for n, _ in batch.requests])
    starts = batch.cu_seqlens_q().tolist()
    for i, (tokens, keys) in enumerate(batch.requests):
        alone = attend(
            batch,
            portable,
            q=batch.q[starts[i] : starts[i + 1]].clone(),
            cu_seqlens_q=torch.tensor([0, tokens], dtype=torch.int32, device="cuda"),
            context_lens=torch.tensor([keys], dtype=torch.int32, device="cuda"),
            tables=batch.tables[i : i + 1].contiguous(),
        )
        assert torch.equal(alone, together[i])


@pytest.mark.parametrize("portable", KERNELS, ids=lambda p: "portable" if p else "sm90")
def test_alone_equals_among_255_others(portable: bool) -> None:
    tokens, before = torch.randint(1, 80, (256,)).tolist(), torch.randint(0, 400, (256,)).tolist()
    batch = Batch(Layer(), [(n, n + b) for n, b in zip(tokens, before, strict=True)], seed=8)
    together = attend(batch, portable).split(tokens)
    starts = batch.cu_seqlens_q().tolist()
    for i in (0, 100, 255):
        alone = attend(
            batch,
            portable,
            q=batch.q[starts[i] : starts[i + 1]].clone(),
            cu_seqlens_q=torch.tensor([0, tokens[i]], dtype=torch.int32, device="cuda"),
            context_lens=batch.context_lens()[i : i + 1],
            tables=batch.tables[i : i + 1].contiguous(),
        )
        assert torch.equal(alone, together[i])


@pytest.mark.parametrize("portable", KERNELS, ids=lambda p: "portable" if p else "sm90")
@pytest.mark.parametrize("chunk", [64, 128, 160, 512, 37])
@pytest.mark.parametrize("steep", [False, True])
def test_any_chunk_cut_gives_the_same_bits(steep: bool, chunk: int, portable: bool) -> None:
    check_cuts(Batch(Layer(), [(1000, 1300)], seed=4, steep=steep), chunk, portable)


@pytest.mark.parametrize("portable", KERNELS, ids=lambda p: "portable" if p else "sm90")
@pytest.mark.parametrize("chunk", [1, 160])
@pytest.mark.parametrize("steep", [False, True])
@pytest.mark.parametrize(
    "layer",
    [Layer(dim=64), Layer(dim=256), Layer(window=300), Layer(dtype=torch.float16), Layer(heads=6)],
    ids=str,
)
def test_chunk_cuts_of_every_build(layer: Layer, steep: bool, chunk: int, portable: bool) -> None:
    """Chunks of one token are what is left of a prompt whose prefix is cached."""
    check_cuts(Batch(layer, [(300, 700)], seed=9, steep=steep), chunk, portable)


def check_cuts(batch: Batch, chunk: int, portable: bool) -> None:
    whole = attend(batch, portable)
    ((tokens, keys),) = batch.requests
    for start in range(0, tokens, chunk):
        end = min(tokens, start + chunk)
        piece = attend(
            batch,
            portable,
            q=batch.q[start:end].clone(),
            cu_seqlens_q=torch.tensor([0, end - start], dtype=torch.int32, device="cuda"),
            context_lens=torch.tensor([keys - tokens + end], dtype=torch.int32, device="cuda"),
        )
        assert torch.equal(piece, whole[start:end])


@pytest.mark.sanitize
@pytest.mark.parametrize("portable", KERNELS, ids=lambda p: "portable" if p else "sm90")
def test_graph_replay_and_strided_queries(portable: bool) -> None:
    batch = Batch(Layer(), MIX, seed=5)
    eager = attend(batch, portable)
    fused = torch.full((batch.q.shape[0], 12, 128), NAN, dtype=torch.bfloat16, device="cuda")
    fused[:, :8] = batch.q
    attention = attention_of(batch.layer, portable)
    out = torch.full_like(batch.q, NAN)
    plan = attention.plan(batch.cu_seqlens_q(), batch.context_lens(), batch.q.shape[0])
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        attention(fused[:, :8], batch.pool, LAYER, batch.tables, plan, out)
    for _ in range(3):
        out.fill_(NAN)
        graph.replay()
        torch.cuda.synchronize()
        assert torch.equal(out, eager)
