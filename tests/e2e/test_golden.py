"""Greedy output of a disaggregated cluster equals Transformers', token for token."""

from __future__ import annotations

import asyncio
import itertools

import pytest

from baton.cluster import LocalCluster
from baton.errors import RequestError
from tests.support.golden import Reference, assert_same
from tests.support.traffic import complete_all

TRANSPORTS = ("shared_memory", "zmq_tcp")
WORKERS = (1, 3)
CHUNKS = (16, 64, 512)
COVERING = [("shared_memory", 1, 512), ("zmq_tcp", 3, 16), ("zmq_tcp", 1, 64)]
MATRIX = [case for case in itertools.product(TRANSPORTS, WORKERS, CHUNKS) if case not in COVERING]


def check(transport: str, workers: int, chunk: int, references: list[Reference]) -> None:
    with LocalCluster(
        prefill=workers,
        decode=workers,
        prefill_args=["--transports", transport, "--max-chunk-tokens", str(chunk)],
        decode_args=["--transports", transport],
    ) as cluster:
        prompts = [reference.prompt for reference in references]
        answers = asyncio.run(
            complete_all(
                cluster.gateway_address,
                prompts,
                at_once=16,
                temperature=0.0,
                ignore_eos=True,
                max_tokens=len(references[0].tokens),
            )
        )
    used = set()
    for reference, answer in zip(references, answers, strict=True):
        assert not isinstance(answer, RequestError), answer
        if note := assert_same(reference, answer.token_ids):
            print(note)
        used.add(answer.finished.handoff.transport)
        assert answer.finished.usage.prompt_tokens == len(reference.prompt)
    assert used == {transport}


@pytest.mark.slow
@pytest.mark.parametrize(("transport", "workers", "chunk"), COVERING)
def test_equals_transformers(transport: str, workers: int, chunk: int, references: list[Reference]) -> None:
    check(transport, workers, chunk, references)


@pytest.mark.matrix
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(("transport", "workers", "chunk"), MATRIX)
def test_equals_transformers_everywhere(
    transport: str, workers: int, chunk: int, references: list[Reference]
) -> None:
    check(transport, workers, chunk, references)
