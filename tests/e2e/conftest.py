"""Fixtures of the tests with real processes and the real model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from baton.cluster import LocalCluster
from tests.support.golden import Reference, reference_answers, varied_prompts

NUM_PROMPTS = 50
NUM_TOKENS = 16


@pytest.fixture(scope="session")
def references(model_dir: Path) -> list[Reference]:
    """Transformers' greedy answers to varied prompts, in float32."""
    return reference_answers(model_dir, varied_prompts(model_dir, NUM_PROMPTS), NUM_TOKENS)


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    """One prefill and one decode worker, as `baton up` starts them."""
    with LocalCluster(prefill=1, decode=1) as cluster:
        yield cluster
