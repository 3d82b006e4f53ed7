"""Batch-invariant mode: a request's tokens and log-probabilities, bit for bit, whatever surrounds it.

docs/kernels/batch_invariance.md lists what a result could depend on; each row of its table names a test
here, or one of a kernel by itself in test_attention_*.py.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from engine.backends.cuda.backend import CudaBackend
from engine.backends.cuda.product_trial import operands
from engine.config import EngineConfig
from engine.models.load import RANDOM_WEIGHTS
from engine.sampling_params import SamplingParams
from engine.step import Logprobs
from tests.support.answers import Answer, AnsweringEngine
from tests.support.op_trace import Hashes, OpTrace, first_difference
from tests.support.tiny_families import create_family

NUM_REQUESTS, NUM_OUT, BLOCK = 200, 36, 16
NUM_TRACED = 10
SMALL_POOL_BLOCKS = 40
# The products of Qwen3-0.6B, whose 1 row of 1024 x 3072 cuBLASLt once added up in another order.
WIDE = {
    "architectures": ["Qwen3ForCausalLM"],
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 4,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 8192,
    "max_position_embeddings": 4096,
    "rope_theta": 1000000.0,
    "tie_word_embeddings": True,
    "eos_token_id": 2,
}
MODEL_SHAPES = [
    (6144, 4096), (4096, 4096), (28672, 4096), (4096, 14336), (1024, 2048), (4096, 1024), (6144, 1024),
    (1024, 3072), (960, 576), (576, 1536), (97, 256), (512, 256), (256, 256), (224, 256), (256, 112),
]  # fmt: skip
Seen = tuple[list[int], list[Logprobs | None]]


@dataclass
class Model:
    """A directory, requests for it, and what each answers when it is alone."""

    directory: Path
    prompts: list[list[int]]
    samplings: list[SamplingParams]

    def config(self, **changes: object) -> EngineConfig:
        values = {
            "kv_bytes": 512 << 20,
            "max_step_tokens": 256,
            "block_size": BLOCK,
            "batch_invariant": True,
            "prefix_cache": False,
        } | changes
        return EngineConfig(str(self.directory), "model", backend="cuda", context_length=512, **values)

    @property
    def block_bytes(self) -> int:
        shape = json.loads((self.directory / "config.json").read_text())
        head_dim = shape.get("head_dim") or shape["hidden_size"] // shape["num_attention_heads"]
        return shape["num_hidden_layers"] * 2 * shape["num_key_value_heads"] * BLOCK * head_dim * 2

    @functools.cached_property
    def alone(self) -> list[Seen]:
        with AnsweringEngine(self.config()) as engine:
            return [
                seen(engine.answer([prompt], [sampling]))[0]
                for prompt, sampling in zip(self.prompts, self.samplings, strict=True)
            ]


def seen(answers: list[Answer]) -> list[Seen]:
    return [(answer.tokens, answer.logprobs) for answer in answers]


def check(answers: list[Answer], wanted: list[Seen]) -> None:
    differing = [i for i, (one, other) in enumerate(zip(seen(answers), wanted, strict=True)) if one != other]
    assert not differing, f"{len(differing)} of {len(wanted)} differ: {differing[:10]}"


@pytest.fixture(scope="module", params=["tiny", "wide"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    directory = tmp_path_factory.mktemp(request.param)
    if request.param == "tiny":
        create_family("llama3", directory, head_dim=64)
    else:
        (directory / "config.json").write_text(json.dumps(WIDE))
        (directory / RANDOM_WEIGHTS).write_text('{"seed": 0}')
    random = torch.Generator().manual_seed(9)
    lengths = torch.randint(1, 180, (NUM_REQUESTS,), generator=random).tolist()
    prompts = [torch.randint(3, 97, (length,), generator=random).tolist() for length in lengths]
    samplings = [
        SamplingParams(
            temperature=float(seed % 3), seed=seed, max_tokens=NUM_OUT, ignore_eos=True, logprobs=2
        )
        for seed in range(NUM_REQUESTS)
    ]
    return Model(directory, prompts, samplings)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"graphs": False},
        {"ahead": False},
        {"max_chunk_tokens": 13},
        {"max_step_tokens": 97},
        {"max_step_tokens": 2048},
        {"max_running": 7},
    ],
    ids=str,
)
def test_together_equals_alone(model: Model, changes: dict[str, object]) -> None:
    with AnsweringEngine(model.config(**changes)) as engine:
        check(engine.answer(model.prompts, model.samplings), model.alone)


def test_no_operation_gives_a_token_other_bits(model: Model) -> None:
    """Where the answers above differ, this names the operation."""

    def traced(groups: list[slice], **changes: object) -> Hashes:
        with AnsweringEngine(model.config(graphs=False, **changes)) as engine, OpTrace(engine) as trace:
            for group in groups:
                engine.answer(model.prompts[group], model.samplings[group])
        return trace.hashes

    alone = traced([slice(index, index + 1) for index in range(NUM_TRACED)])
    for changes in ({}, {"max_step_tokens": 97}, {"max_chunk_tokens": 13}):
        together = traced([slice(NUM_TRACED)], **changes)
        assert together.keys() == alone.keys()
        assert first_difference(together, alone) == ""


@pytest.mark.parametrize("swap_bytes", [0, 256 << 20], ids=["recomputed", "swapped"])
def test_a_preempted_request_answers_the_same(model: Model, swap_bytes: int) -> None:
    pool = SMALL_POOL_BLOCKS * model.block_bytes
    with AnsweringEngine(model.config(kv_bytes=pool, swap_bytes=swap_bytes)) as engine:
        check(engine.answer(model.prompts, model.samplings), model.alone)
        assert engine.built.engine.stats().preemptions > 0


def test_a_request_that_goes_on_elsewhere_answers_the_same(model: Model) -> None:
    """As after a lost worker: the prompt and some of the answer are computed again."""
    begun = [tokens[: 1 + index % (NUM_OUT - 1)] for index, (tokens, _) in enumerate(model.alone)]
    with AnsweringEngine(model.config(prefix_cache=True)) as engine:
        answers = engine.answer(model.prompts, model.samplings, begun)
    check(
        answers,
        [(t[len(b) :], p[len(b) :]) for (t, p), b in zip(model.alone, begun, strict=True)],
    )


def test_cached_prefixes_change_nothing(model: Model) -> None:
    """Prompts that were computed before, and such that go on after another's prompt and answer."""
    follow_ups = [
        [*prompt, *tokens, 5, 6, 7] for prompt, (tokens, _) in zip(model.prompts, model.alone, strict=True)
    ]
    with AnsweringEngine(model.config()) as engine:
        wanted = seen(engine.answer(follow_ups, model.samplings))
    with AnsweringEngine(model.config(prefix_cache=True)) as engine:
        for _ in range(2):
            answers = engine.answer(model.prompts, model.samplings)
            check(answers, model.alone)
        assert sum(answer.num_cached_tokens for answer in answers) > 0
        check(engine.answer(follow_ups, model.samplings), wanted)


@pytest.mark.parametrize("cancelling", [True, False], ids=["cancelling", "random"])
@pytest.mark.parametrize("has_bias", [False, True], ids=["plain", "bias"])
@pytest.mark.parametrize("shape", MODEL_SHAPES, ids=str)
def test_products(shape: tuple[int, int], has_bias: bool, cancelling: bool) -> None:
    """A row's bits depend neither on how many rows there are, nor on its place among them."""
    backend = CudaBackend(torch.bfloat16, batch_invariant=True)
    generator = torch.Generator("cuda").manual_seed(torch.seed() % 2**31)
    x, weight, bias = operands(2048, *shape, torch.bfloat16, generator, cancelling=cancelling)
    linear = backend.pack_linear([weight], [bias] if has_bias else None)
    head = backend.tie_linear(weight)
    wanted, logits = backend.linear(x, linear), backend.logits(x, head).clone()
    for rows in (1, 2, 3, 7, 8, 16, 33, 64, 100, 128, 200, 256, 500, 1024, 1700):
        some = torch.randperm(len(x), device="cuda")[:rows]
        assert torch.equal(backend.linear(x[some], linear), wanted[some]), f"{rows} rows"
        assert torch.equal(backend.logits(x[some], head), logits[some]), f"logits of {rows} rows"
