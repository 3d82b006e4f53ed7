"""Every operation of the CPU backend against a float64 reference."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from engine.backends.base import Activation, AttentionShape, KVPool, QKNorm, RopeTable
from engine.backends.batch import BatchMetadata
from engine.backends.cpu.backend import CpuBackend
from engine.kv.layout import CacheGroup, CacheKind

BACKEND = CpuBackend()
SHAPES = [(4, 4, 64), (9, 3, 64), (8, 1, 16), (6, 2, 24), (4, 2, 128)]


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def close(ours: torch.Tensor, wanted: torch.Tensor, tolerance: float = 2e-5) -> None:
    torch.testing.assert_close(ours.double(), wanted, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("rows", [1, 2, 7, 33, 130])
@pytest.mark.parametrize("has_bias", [False, True])
def test_linear(rows: int, has_bias: bool) -> None:
    x, weight = torch.randn(rows, 72, generator=seeded(rows)), torch.randn(40, 72, generator=seeded(1))
    bias = torch.randn(40, generator=seeded(2)) if has_bias else None
    packed = BACKEND.pack_linear([weight], None if bias is None else [bias])
    wanted = x.double() @ weight.double().T + (0 if bias is None else bias.double())
    close(BACKEND.linear(x, packed), wanted)
    assert (packed.in_features, packed.out_features) == (72, 40)


def test_pack_linear_keeps_nothing_of_its_input() -> None:
    x, weight, bias = torch.randn(3, 8), torch.randn(5, 8), torch.randn(5)
    packed = BACKEND.pack_linear([weight], [bias])
    before = BACKEND.linear(x, packed)
    weight.fill_(float("nan"))
    bias.fill_(float("nan"))
    assert torch.equal(BACKEND.linear(x, packed), before)


def test_embedding_and_take_rows() -> None:
    table = torch.randn(11, 6)
    ids = torch.tensor([10, 0, 3, 3], dtype=torch.int32)
    assert torch.equal(BACKEND.embedding(ids, table), table[[10, 0, 3, 3]])
    assert torch.equal(BACKEND.take_rows(table, torch.tensor([7, 2], dtype=torch.int32)), table[[7, 2]])


@pytest.mark.parametrize("rows", [1, 5, 70])
@pytest.mark.parametrize("width", [16, 97, 576])
@pytest.mark.parametrize("norm", ["rms", "layer"])
@pytest.mark.parametrize("has_residual", [False, True])
def test_norms(rows: int, width: int, norm: str, has_residual: bool) -> None:
    generator = seeded(rows * width)
    x, weight, bias = (
        torch.randn(*shape, generator=generator) for shape in ((rows, width), (width,), (width,))
    )
    residual = torch.randn(rows, width, generator=generator) if has_residual else None
    wanted = x.double() + (0 if residual is None else residual.double())
    total = wanted.clone()
    if norm == "rms":
        ours = BACKEND.rms_norm(x, weight, 1e-5, residual)
        wanted = wanted / (wanted.square().mean(1, keepdim=True) + 1e-5).sqrt() * weight.double()
    else:
        ours = BACKEND.layer_norm(x, weight, bias, 1e-5, residual)
        centred = wanted - wanted.mean(1, keepdim=True)
        deviation = (centred.square().mean(1, keepdim=True) + 1e-5).sqrt()
        wanted = centred / deviation * weight.double() + bias.double()
    close(ours, wanted)
    if residual is not None:
        close(residual, total)


@pytest.mark.parametrize("activation", list(Activation))
@pytest.mark.parametrize("rows", [1, 9])
def test_gated_activation(activation: Activation, rows: int) -> None:
    gate_up = torch.randn(rows, 2 * 53, generator=seeded(rows)) * 6
    gate_up[0, :4] = torch.tensor([-100.0, 100.0, 0.0, -88.5])
    gate, up = gate_up.double().chunk(2, dim=1)
    wanted = {
        Activation.SILU: lambda: gate * torch.sigmoid(gate),
        Activation.GELU: lambda: gate * 0.5 * (1 + torch.erf(gate / 2**0.5)),
        Activation.GELU_TANH: lambda: (
            gate * 0.5 * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (gate + 0.044715 * gate**3)))
        ),
    }[activation]()
    close(BACKEND.gated_activation(gate_up, activation), wanted * up)


class Case:
    """Rows of random lengths over a shuffled pool whose every other slot is NaN."""

    def __init__(
        self, lengths: list[tuple[int, int]], shape: AttentionShape, block_size: int = 16, layers: int = 2
    ) -> None:
        """`lengths`: (query tokens, context) of each row."""
        self.shape = shape
        self.lengths = lengths
        num_blocks = [-(-context // block_size) for _, context in lengths]
        total = sum(num_blocks) + 3
        group = CacheGroup(
            "attention",
            CacheKind.ATTENTION,
            tuple(range(layers)),
            block_size,
            (layers, 2, shape.num_kv_heads, block_size, shape.head_dim),
            "float32",
        )
        self.pool: KVPool = BACKEND.allocate_pool(group, total, None)
        self.pool.blocks.fill_(float("nan"))
        generator = np.random.default_rng(total)
        free = generator.permutation(total)
        tables = np.full((len(lengths), max(num_blocks)), -1, np.int32)
        for row, count in enumerate(num_blocks):
            tables[row, :count], free = free[:count], free[count:]
        self.tables = tables
        self.positions = np.concatenate(
            [np.arange(context - tokens, context, dtype=np.int32) for tokens, context in lengths]
        )
        rows = np.repeat(np.arange(len(lengths)), [tokens for tokens, _ in lengths])
        self.metadata = BatchMetadata(
            num_decodes=next((i for i, (tokens, _) in enumerate(lengths) if tokens != 1), len(lengths)),
            positions=self.positions,
            slot_mapping=(
                tables[rows, self.positions // block_size] * block_size + self.positions % block_size
            ).astype(np.int32),
            cu_seqlens_q=np.cumsum([0] + [tokens for tokens, _ in lengths], dtype=np.int32),
            context_lens=np.array([context for _, context in lengths], np.int32),
            block_tables=tables,
        )
        self.step = BACKEND.begin(self.metadata, self.pool)

    def store(self, layer: int) -> list[torch.Tensor]:
        """Random K and V of every context; [2, H_kv, context, D] a row."""
        stored = []
        size = self.pool.group.block_size
        for row, (_, context) in enumerate(self.lengths):
            values = torch.randn(2, self.shape.num_kv_heads, context, self.shape.head_dim)
            for position in range(context):
                block = int(self.tables[row, position // size])
                self.pool.blocks[block, layer, :, :, position % size] = values[:, :, position]
            stored.append(values)
        return stored

    def reference(self, q: torch.Tensor, stored: list[torch.Tensor]) -> torch.Tensor:
        """float64[T, H * D]."""
        out, start = [], 0
        for (tokens, context), values in zip(self.lengths, stored, strict=True):
            keys, vals = values.double().repeat_interleave(
                self.shape.num_heads // self.shape.num_kv_heads, dim=1
            )
            queries = q[start : start + tokens].double().transpose(0, 1)
            scores = queries @ keys.transpose(1, 2) * self.shape.scale
            at = torch.arange(context - tokens, context)[:, None]
            key_at = torch.arange(context)[None, :]
            hidden = key_at > at
            if self.shape.sliding_window is not None:
                hidden |= key_at <= at - self.shape.sliding_window
            weights = scores.masked_fill(hidden, float("-inf")).softmax(-1)
            out.append((weights @ vals).transpose(0, 1).flatten(1))
            start += tokens
        return torch.cat(out)


def attend(case: Case, q: torch.Tensor, layer: int) -> torch.Tensor:
    out = torch.full((q.shape[0], q.shape[1] * q.shape[2]), float("nan"))
    if case.step.num_decodes:
        BACKEND.attention_decode(q, case.step, case.pool, layer, case.shape, out)
    if case.step.num_decodes < case.step.num_tokens:
        BACKEND.attention_prefill(q, case.step, case.pool, layer, case.shape, out)
    return out


@pytest.mark.parametrize(("heads", "kv_heads", "head_dim"), SHAPES)
@pytest.mark.parametrize("window", [None, 1, 50, 300])
@pytest.mark.parametrize(
    "lengths",
    [
        [(1, 1), (1, 16), (1, 17), (1, 255), (1, 256), (1, 257), (1, 700)],
        [(5, 5), (16, 40), (33, 300), (270, 513)],
        [(1, 90), (1, 1), (2, 2), (17, 400)],
    ],
    ids=["decode", "prefill", "mixed"],
)
def test_attention(
    heads: int, kv_heads: int, head_dim: int, window: int | None, lengths: list[tuple[int, int]]
) -> None:
    torch.manual_seed(heads + head_dim)
    shape = AttentionShape(heads, kv_heads, head_dim, head_dim**-0.5, window)
    case = Case(lengths, shape)
    stored = case.store(layer=1)
    q = torch.randn(case.step.num_tokens, heads, head_dim) * 2
    close(attend(case, q, layer=1), case.reference(q, stored))


@pytest.mark.parametrize("block_size", [1, 16, 64])
def test_attention_over_block_sizes(block_size: int) -> None:
    torch.manual_seed(block_size)
    case = Case([(1, 70), (1, 300), (9, 130)], AttentionShape(6, 2, 32, 0.2), block_size)
    stored = case.store(layer=0)
    q = torch.randn(case.step.num_tokens, 6, 32)
    close(attend(case, q, layer=0), case.reference(q, stored))


def test_decode_of_a_row_does_not_depend_on_its_neighbours() -> None:
    torch.manual_seed(3)
    shape = AttentionShape(9, 3, 64, 0.125)
    case = Case([(1, 600), (1, 30), (1, 999)], shape)
    case.store(layer=0)
    q = torch.randn(3, 9, 64)
    together = attend(case, q, layer=0)
    for row in range(3):
        alone = BatchMetadata(
            num_decodes=1,
            positions=case.metadata.positions[row : row + 1],
            slot_mapping=case.metadata.slot_mapping[row : row + 1],
            cu_seqlens_q=np.array([0, 1], np.int32),
            context_lens=case.metadata.context_lens[row : row + 1],
            block_tables=case.metadata.block_tables[row : row + 1].copy(),
        )
        out = torch.empty(1, 9 * 64)
        BACKEND.attention_decode(q[row : row + 1], BACKEND.begin(alone, case.pool), case.pool, 0, shape, out)
        assert torch.equal(out[0], together[row])


@pytest.mark.parametrize(("heads", "kv_heads", "head_dim"), SHAPES)
@pytest.mark.parametrize("has_norm", [False, True])
@pytest.mark.parametrize("rotary_share", [1.0, 0.5])
def test_rope_kv_store(heads: int, kv_heads: int, head_dim: int, has_norm: bool, rotary_share: float) -> None:
    torch.manual_seed(head_dim)
    shape = AttentionShape(heads, kv_heads, head_dim, 1.0)
    case = Case([(1, 20), (3, 3), (18, 37)], shape)
    tokens = case.step.num_tokens
    rotary_dim = int(head_dim * rotary_share)
    angles = torch.rand(40, rotary_dim // 2) * 6
    rope = RopeTable(torch.cat((angles.cos(), angles.sin()), dim=1), rotary_dim)
    norm = QKNorm(torch.randn(head_dim), torch.randn(head_dim), 1e-6) if has_norm else None
    qkv = torch.randn(tokens, (heads + 2 * kv_heads) * head_dim)
    parts = qkv.double().view(tokens, -1, head_dim).split((heads, kv_heads, kv_heads), dim=1)
    wanted = [part.clone() for part in parts]
    for part, weight in ((0, norm and norm.query), (1, norm and norm.key)):
        x = wanted[part]
        if weight is not None:
            x = x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weight.double()
        first, second, rest = x.split((rotary_dim // 2, rotary_dim // 2, head_dim - rotary_dim), dim=-1)
        cos, sin = rope.cos_sin[case.positions].double()[:, None].chunk(2, dim=-1)
        wanted[part] = torch.cat((first * cos - second * sin, second * cos + first * sin, rest), dim=-1)
    q = BACKEND.rope_kv_store(qkv, case.step, case.pool, 1, shape, rope, norm)
    close(q, wanted[0])
    size = case.pool.group.block_size
    for token, slot in enumerate(case.metadata.slot_mapping):
        stored = case.pool.blocks[slot // size, 1, :, :, slot % size]
        close(stored[0], wanted[1][token])
        close(stored[1], wanted[2][token])
        case.pool.blocks[slot // size, 1, :, :, slot % size] = float("nan")
    assert case.pool.blocks.isnan().all(), "a slot outside the step was written"


def test_block_copy() -> None:
    case = Case([(1, 64)], AttentionShape(2, 2, 8, 1.0))
    case.pool.blocks.copy_(torch.randn(case.pool.blocks.shape))
    before = case.pool.blocks.clone()
    BACKEND.block_copy(case.pool, [0, 3], [5, 1])
    before[[5, 1]] = before[[0, 3]]
    assert torch.equal(case.pool.blocks, before)


def test_pool_lies_in_the_memory_given() -> None:
    case = Case([(1, 16)], AttentionShape(2, 2, 8, 1.0))
    group = case.pool.group
    memory = bytearray(2 * group.block_bytes)
    pool = BACKEND.allocate_pool(group, 2, memoryview(memory))
    pool.blocks[1].fill_(1.0)
    assert memory[: group.block_bytes] == bytes(group.block_bytes)
    assert memory[group.block_bytes :] == np.ones(group.block_bytes // 4, np.float32).tobytes()
    assert pool.memory is not None
    assert len(pool.memory) == len(memory)
