"""Fixtures of the tests with real processes and the real model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from baton.cluster import LocalCluster
from tests.support.golden import GreedyReference


@pytest.fixture(scope="session")
def reference(model_dir: Path) -> GreedyReference:
    """Transformers on the same weights, in float32."""
    return GreedyReference(model_dir)


@pytest.fixture(scope="session")
def cluster() -> Iterator[LocalCluster]:
    """One prefill and one decode worker, as `baton up` starts them, for all tests that leave them whole."""
    with LocalCluster(prefill=1, decode=1) as cluster:
        yield cluster
