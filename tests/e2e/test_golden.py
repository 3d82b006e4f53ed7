"""Greedy output of a disaggregated cluster equals Transformers', token for token."""

from __future__ import annotations

import asyncio
import itertools
from pathlib import Path

import pytest

from baton.client import Client
from baton.cluster import LocalCluster
from baton.errors import RequestError
from tests.support.golden import GreedyReference, varied_prompts
from tests.support.traffic import complete_all

TRANSPORTS = ("shared_memory", "zmq_tcp")
WORKERS = (1, 3)
CHUNKS = (16, 64, 512)
COVERING = [("shared_memory", 1, 512), ("zmq_tcp", 3, 16), ("zmq_tcp", 1, 64)]
MATRIX = list(itertools.product(TRANSPORTS, WORKERS, CHUNKS))
OPTIONS = {"temperature": 0.0, "ignore_eos": True, "max_tokens": 24}
# Every kind of prompt is among the first; the others are of random places and lengths.
FEW, ALL = 30, 50


def check(
    transport: str, workers: int, chunk: int, reference: GreedyReference, model_dir: Path, count: int
) -> None:
    prompts = varied_prompts(model_dir, count)
    budget = ["--max-chunk-tokens", str(chunk), "--max-step-tokens", str(max(chunk, 256))]
    with LocalCluster(
        prefill=workers,
        decode=workers,
        prefill_args=[*("--transports", transport), *budget],
        decode_args=["--transports", transport],
    ) as cluster:
        answers = asyncio.run(complete_all(cluster.gateway_address, prompts, at_once=16, **OPTIONS))
    used = set()
    for prompt, answer in zip(prompts, answers, strict=True):
        assert not isinstance(answer, RequestError), answer
        assert len(answer.token_ids) == OPTIONS["max_tokens"]
        assert answer.finished.usage.prompt_tokens == len(prompt)
        used.add(answer.finished.handoff.transport)
        if note := reference.check(prompt, answer.token_ids):
            print(note)
    assert used == {transport}


def test_equals_generate(cluster: LocalCluster, reference: GreedyReference, model_dir: Path) -> None:
    with Client(cluster.gateway_address) as client:
        for prompt in varied_prompts(model_dir)[:10:2]:
            tokens = client.complete(token_ids=prompt, **OPTIONS).token_ids
            note = reference.check(prompt, tokens)
            assert note or list(tokens) == reference.generate(prompt, len(tokens))


@pytest.mark.slow
@pytest.mark.parametrize(("transport", "workers", "chunk"), COVERING)
def test_equals_transformers(
    transport: str, workers: int, chunk: int, reference: GreedyReference, model_dir: Path
) -> None:
    check(transport, workers, chunk, reference, model_dir, FEW)


@pytest.mark.matrix
@pytest.mark.parametrize(("transport", "workers", "chunk"), MATRIX)
def test_equals_transformers_everywhere(
    transport: str, workers: int, chunk: int, reference: GreedyReference, model_dir: Path
) -> None:
    check(transport, workers, chunk, reference, model_dir, ALL)
