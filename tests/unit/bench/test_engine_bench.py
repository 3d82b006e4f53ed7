"""Workloads, the floor, and the trace of `baton bench engine`."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from bench.engine.apart import worker_flags
from bench.engine.floor import Ceilings, Costs, StepWork, floor_by_part, floor_seconds, model_costs
from bench.engine.measurement import Watch, percentile
from bench.engine.trace import StepTrace, work_of
from bench.engine.workloads import MAKERS, Workload, lognormal, make_workload, warm_up_workload
from engine.backends.base import Activation
from engine.models.architecture import Architecture, RopeKind, RopeParameters
from engine.request import Request
from engine.sampling_params import SamplingParams
from engine.step import ScheduledRow, SchedulerOutput

COSTS = Costs(weight_bytes=1000, layer_flops=10, head_flops=5, kv_bytes=2, attention_flops=3)
CEILINGS = Ceilings(read_bytes_s=100.0, product_flops=50.0, attention_flops=30.0)
LLAMA_8B = Architecture(
    name="LlamaForCausalLM",
    num_layers=32,
    hidden_size=4096,
    intermediate_size=14336,
    vocab_size=128256,
    num_heads=32,
    num_kv_heads=8,
    head_dim=128,
    max_positions=131072,
    rope=RopeParameters(RopeKind.DEFAULT, 500000.0, 128),
    norm_eps=1e-5,
    activation=Activation.SILU,
    qkv_bias=False,
    output_bias=False,
    mlp_bias=False,
    qk_norm=False,
    tied_embeddings=False,
    sliding_windows=(None,) * 32,
    eos_token_ids=frozenset(),
)


def test_the_workloads_are_those_of_the_table() -> None:
    made = {name: make_workload(name, 1.0, 131072) for name in MAKERS}
    assert {name: len(workload.sizes) for name, workload in made.items()} == {
        "single": 1,
        "decode": 256,
        "prefill": 32,
        "mixed": 256,
        "chat": 1000,
        "interrupted": 88,
        "undisturbed": 64,
    }
    assert made["decode"].sizes[0] == (128, 512)
    assert (made["prefill"].tokens_in, made["prefill"].tokens_out) == (32 * 8192, 32)
    assert all(100 <= length <= 1024 for size in made["mixed"].sizes for length in size)
    assert made["chat"].tokens_in == pytest.approx(161_000, rel=0.01)
    assert made["chat"].tokens_out == pytest.approx(338_000, rel=0.01)
    again = make_workload("chat", 1.0, 131072)
    assert again == made["chat"]
    assert again.prompts(1000, 1) == made["chat"].prompts(1000, 1) != again.prompts(1000, 2)


def test_lengths_are_clipped_and_have_the_mean() -> None:
    lengths = lognormal(random.Random(0), 2000, 338)
    assert sum(lengths) / 2000 == pytest.approx(338, rel=0.01)
    assert min(lengths) >= 4
    assert max(lengths) == 1024


def test_scale_shrinks_and_prompts_fit_the_context() -> None:
    small = make_workload("prefill", 0.1, 512)
    assert small.sizes == ((510, 1),) * 3
    assert len(make_workload("single", 0.01, 512).sizes) == 1
    warm = warm_up_workload([small, make_workload("chat", 0.01, 512)])
    assert len(warm.sizes) == 10
    assert warm.sizes[0][0] == 510


def test_figures() -> None:
    assert Workload("single", ((1024, 256),)).figure(2.56) == pytest.approx(10.0)
    assert Workload("prefill", ((100, 1), (100, 1))).figure(2.0) == 100.0
    assert Workload("chat", ((100, 30), (100, 50))).figure(2.0) == 40.0


def test_an_interrupted_run_counts_the_gaps_of_its_answers() -> None:
    workload = make_workload("interrupted", 1.0, 131072)
    assert sum(workload.watched) == 64
    assert {size for size, seen in zip(workload.sizes, workload.watched, strict=True) if not seen} == {
        (8192, 8)
    }
    assert make_workload("undisturbed", 1.0, 131072).sizes == ((128, 512),) * 64
    small = make_workload("interrupted", 0.05, 131072)
    assert small.sizes == ((6, 26),) * 4
    assert any(not seen for seen in make_workload("interrupted", 0.2, 131072).watched)
    watch = Watch({"answer": 4, "prompt": 3}, start=0.0)
    for name, now in (
        ("answer", 1),
        ("prompt", 2),
        ("answer", 2),
        ("answer", 3),
        ("prompt", 9),
        ("prompt", 99),
    ):
        watch.token(name, float(now))
    watch.token("answer", 7.0)
    result = watch.result((True, False))
    assert result.gaps_s == (1.0, 1.0, 4.0)
    run = Workload("interrupted", ((1, 4), (9, 3)))
    assert result.summary(run)["figure"] == pytest.approx(percentile((1.0, 1.0, 4.0), 99))
    assert run.figure(1.0) == 1.0, "its floor"


def test_workers_on_two_gpus_see_both() -> None:
    assert worker_flags(["--model", "m"], "decode", "1") == [
        "--model",
        "m",
        "--worker-id",
        "decode",
        "--gpu",
        "1",
    ]
    assert "--gpu" not in worker_flags([], "prefill", "")


def test_the_floor_of_one_request_by_hand() -> None:
    # Step 1: 4 prompt tokens, 1 sampled, 10 pairs; steps 2 and 3: a row that reads 5, then 6 tokens.
    prompt = max(1000 / 100, (4 * 10 + 5) / 50) + 10 * 3 / 30
    decode = sum(max(1000 / 100, 15 / 50) + tokens * 2 / 100 for tokens in (5, 6))
    floor = floor_seconds(Workload("single", ((4, 3),)), COSTS, CEILINGS, 8, 64)
    assert floor == pytest.approx(prompt + decode)


def test_the_floor_is_that_of_products_where_they_are_dearer() -> None:
    costs = replace(COSTS, weight_bytes=0, kv_bytes=0, attention_flops=0)
    workload = Workload("decode", ((4, 3),) * 10)
    for max_running, budget in ((8, 64), (2, 7), (10, 1000)):
        floor = floor_seconds(workload, costs, CEILINGS, max_running, budget)
        assert floor == pytest.approx((10 * (4 + 2) * 10 + 30 * 5) / 50)


def test_a_smaller_batch_reads_the_weights_more_often() -> None:
    workload = Workload("decode", ((4, 3),) * 10)
    floors = [floor_seconds(workload, COSTS, CEILINGS, running, 64) for running in (1, 5, 10)]
    assert floors == sorted(floors, reverse=True)
    assert floors[0] > 2 * floors[2]


def test_the_work_of_a_traced_step() -> None:
    """Two rows decode with 8 and 5 tokens of context; a chunk of 3 comes after 4 tokens."""

    def row(start: int, num_tokens: int, sample: bool) -> ScheduledRow:
        request = Request("a", [0] * 20, 20, SamplingParams())
        return ScheduledRow(request, start, num_tokens, sample)

    work = work_of(SchedulerOutput(1, (row(7, 1, True), row(4, 1, True), row(4, 3, False))))
    assert work == StepWork(tokens=5, sampled=2, read_tokens=8 + 5, pairs=5 + 6 + 7)
    floors = floor_by_part(work, COSTS, CEILINGS)
    assert floors["attention_decode"] == 13 * COSTS.kv_bytes / CEILINGS.read_bytes_s
    assert floors["attention_prefill"] == 18 * COSTS.attention_flops / CEILINGS.attention_flops


def test_kernels_belong_to_a_part_of_a_step() -> None:
    trace = StepTrace(1, 1, kernels=False)
    names = {
        "void nvjet_sm90_tst_256x128_64x4<int>": 4.0,
        "cublasLt::splitKreduce_kernel<32>": 1.0,
        "linear_rows": 2.0,
        "attention_decode": 8.0,
        "attention_decode_plan": 16.0,
        "attention_prefill_sm90": 32.0,
        "rms_norm": 64.0,
    }
    trace._kernels = [{"name": name, "dur": 1e3 * ms} for name, ms in names.items()]
    parts = {"products": 7.0, "attention_decode": 24.0, "attention_prefill": 32.0, "other": 64.0}
    assert trace.part_table() == parts


def test_costs_of_the_8b_shape() -> None:
    costs = model_costs(LLAMA_8B, "bfloat16")
    assert costs.layer_flops == pytest.approx(13.96e9, rel=0.001)
    assert costs.weight_bytes == pytest.approx(15.0e9, rel=0.01)
    assert costs.kv_bytes == 128 * 1024
    assert costs.attention_flops == 4 * 32 * 4096


def test_a_watch_counts_every_token() -> None:
    watch = Watch({"a": 2, "b": 1}, start=10.0)
    assert not watch.token("a", 11.0)
    assert not watch.token("b", 11.5)
    assert watch.token("a", 13.0)
    result = watch.result()
    assert (result.seconds, result.ttft_s, result.gaps_s) == (3.0, (1.0, 1.5), (2.0,))
    with pytest.raises(AssertionError, match="a: 0 of 2"):
        Watch({"a": 2}).result()


def test_percentiles_of_little() -> None:
    assert percentile((), 50) == 0.0
    assert percentile((3.0,), 99) == 3.0
    assert percentile((1.0, 2.0, 3.0), 50) == 2.0
