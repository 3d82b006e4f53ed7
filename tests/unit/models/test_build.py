"""build_engine: a whole engine from a directory, answering as Transformers does."""

from __future__ import annotations

import queue
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from engine.build import build_engine
from engine.config import EngineConfig
from engine.errors import InvalidRequestError
from engine.events import StepEvents, TokenSampled
from engine.request import FinishReason, Request
from engine.sampling_params import SamplingParams
from tests.support.tiny_families import create_family

BLOCK_BYTES = 3 * 2 * 2 * 16 * 36 * 4


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[PreTrainedModel, Path]:
    directory = tmp_path_factory.mktemp("llama3")
    return create_family("llama3", directory), directory


def config(directory: Path, **changes: object) -> EngineConfig:
    values = {"kv_bytes": 40 * BLOCK_BYTES + 5, "max_step_tokens": 48, "max_chunk_tokens": 20} | changes
    return EngineConfig(model=str(directory), model_name="tiny", **values)


def test_engine_answers_as_transformers(saved: tuple[PreTrainedModel, Path]) -> None:
    model, directory = saved
    events: queue.Queue[StepEvents] = queue.Queue()
    memory: dict[str, bytearray] = {}

    def allocate(group: str, num_bytes: int) -> memoryview:
        memory[group] = bytearray(num_bytes)
        return memoryview(memory[group])

    built = build_engine(config(directory), events.put, allocate)
    assert built.num_blocks == 40
    assert built.context_length == 512
    assert built.layout.groups[0].block_bytes == BLOCK_BYTES
    assert len(built.kv_memory[0]) == 40 * BLOCK_BYTES == len(memory["attention"])
    assert set(built.load_seconds) == {"open", "backend", "weights", "pool", "runner"}
    prompts = {str(n): torch.randint(3, 97, (n,)).tolist() for n in (1, 16, 45, 70)}
    sampling = SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True)
    built.engine.start()
    try:
        for name, prompt in prompts.items():
            built.engine.submit(Request(name, list(prompt), len(prompt), sampling))
        answers: dict[str, list[int]] = {name: [] for name in prompts}
        running = set(prompts)
        while running:
            for event in events.get(timeout=60).events:
                if isinstance(event, TokenSampled):
                    answers[event.request_id].append(event.token.token_id)
                    if event.finish_reason is FinishReason.LENGTH:
                        running.remove(event.request_id)
        built.engine.check_invariants()
    finally:
        built.engine.stop()
    for name, prompt in prompts.items():
        tokens = list(prompt)
        for _ in range(12):
            with torch.inference_mode():
                tokens.append(int(model(torch.tensor([tokens])).logits[0, -1].argmax()))
        assert answers[name] == tokens[len(prompt) :], f"prompt of {name} tokens"
    assert any(memory["attention"]), "the pool is not where it was asked to be"


def test_limits_are_named(saved: tuple[PreTrainedModel, Path]) -> None:
    _, directory = saved
    for changes, message in (
        ({"kv_bytes": 100}, "kv_bytes: 100 holds no block"),
        ({"context_length": 513}, "context_length: 513 is beyond the model's 512"),
        ({"dtype": "bfloat16"}, "dtype: the cpu backend computes in float32"),
    ):
        with pytest.raises(InvalidRequestError, match=message):
            build_engine(config(directory, **changes), lambda events: None)
