from __future__ import annotations

import math

import pytest

from baton.v1.sampling_pb2 import SamplingParams
from services.common.errors import BatonError, ErrorReason
from services.gateway.sampling import check_sampling, for_workers


@pytest.mark.parametrize(
    ("params", "field"),
    [
        (SamplingParams(max_tokens=0), "max_tokens"),
        (SamplingParams(temperature=2.5), "temperature"),
        (SamplingParams(temperature=-0.1), "temperature"),
        (SamplingParams(temperature=math.nan), "temperature"),
        (SamplingParams(top_p=0), "top_p"),
        (SamplingParams(top_p=1.5), "top_p"),
        (SamplingParams(top_p=math.nan), "top_p"),
        (SamplingParams(min_p=1.5), "min_p"),
        (SamplingParams(repetition_penalty=0), "repetition_penalty"),
        (SamplingParams(repetition_penalty=1e-30), "repetition_penalty"),
        (SamplingParams(repetition_penalty=float("nan")), "repetition_penalty"),
        (SamplingParams(presence_penalty=-3), "presence_penalty"),
        (SamplingParams(frequency_penalty=3), "frequency_penalty"),
        (SamplingParams(logprobs=21), "logprobs"),
        (SamplingParams(stop=["a"] * 17), "stop"),
        (SamplingParams(stop=["a", ""]), "stop"),
        (SamplingParams(stop_token_ids=[100]), "stop_token_ids"),
        (SamplingParams(stop_token_ids=[1] * 65), "stop_token_ids"),
        (SamplingParams(logit_bias={100: 1.0}), "logit_bias"),
        (SamplingParams(logit_bias={1: 101.0}), "logit_bias[1]"),
        (SamplingParams(max_tokens=4, min_tokens=5), "min_tokens"),
    ],
)
def test_out_of_range_names_the_field(params: SamplingParams, field: str) -> None:
    with pytest.raises(BatonError) as caught:
        check_sampling(params, vocab_size=100, prefix="sampling.")
    assert caught.value.reason is ErrorReason.INVALID_ARGUMENT
    assert caught.value.field == f"sampling.{field}"
    assert caught.value.message.startswith(f"sampling.{field}: ")


def test_defaults_and_edges_pass() -> None:
    check_sampling(SamplingParams(), vocab_size=100)
    edges = SamplingParams(
        max_tokens=1, temperature=2, top_p=1, min_p=1, repetition_penalty=2, logprobs=20, min_tokens=1
    )
    check_sampling(edges, vocab_size=100)


def test_workers_get_a_seed_and_no_stop_strings() -> None:
    asked = SamplingParams(stop=["a"], temperature=0.5)
    fixed = for_workers(asked, 7)
    assert (fixed.max_tokens, list(fixed.stop), fixed.temperature) == (7, [], 0.5)
    assert fixed.HasField("seed")
    assert for_workers(asked, 7).seed != fixed.seed
    assert for_workers(SamplingParams(seed=3), 7).seed == 3
    assert list(asked.stop) == ["a"]
