"""The trace that names the operation, on a product that rounds a row by itself differently."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from engine.backends.cpu.backend import CpuBackend
from engine.backends.cpu.linear import CpuLinear
from engine.config import EngineConfig
from engine.sampling_params import SamplingParams
from tests.support.answers import AnsweringEngine
from tests.support.op_trace import Hashes, OpTrace, first_difference
from tests.support.tiny_families import create_family

PROMPTS = [[5, 6, 7], list(range(3, 43)), list(range(50, 67))]


def traced(directory: Path, groups: list[list[list[int]]]) -> Hashes:
    config = EngineConfig(str(directory), "model", backend="cpu", kv_bytes=16 << 20, prefix_cache=False)
    sampling = SamplingParams(temperature=0.0, max_tokens=4, ignore_eos=True)
    with AnsweringEngine(config) as engine, OpTrace(engine) as trace:
        for group in groups:
            engine.answer(group, sampling)
    return trace.hashes


@pytest.fixture
def model(tmp_path: Path) -> Path:
    create_family("llama3", tmp_path, head_dim=64)
    return tmp_path


def test_the_operation_that_differs_is_named(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Only rows of their own are looked at: MKL itself adds up other numbers of rows in other orders.
    alone = traced(model, [[prompt] for prompt in PROMPTS])
    assert {token for token, _ in alone} == {1, 2, 3}
    assert sum(number == 2 for number, _ in alone) == 40 + 3
    assert first_difference(traced(model, [[prompt] for prompt in PROMPTS]), alone) == ""
    original = CpuBackend.linear

    def other_when_alone(backend: CpuBackend, x: torch.Tensor, weight: CpuLinear) -> torch.Tensor:
        result = original(backend, x, weight)
        return result * 1.0001 if len(x) == 1 and weight.out_features == 224 else result

    monkeypatch.setattr(CpuBackend, "linear", other_when_alone)
    found = first_difference(traced(model, [[prompt] for prompt in PROMPTS]), alone)
    assert "linear 224 x 256 out: 3 requests, such as request 1 at 2" in found
