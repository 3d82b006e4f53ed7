"""Workers are replaced one by one under load, as a rolling update does: nobody notices."""

from __future__ import annotations

import asyncio

import pytest

from baton import models
from baton.client import Client
from baton.cluster import LocalCluster
from bench.rolling import Load, measure
from tests.support.golden import varied_prompts
from tests.support.traffic import hold_nothing, wait_for

ONE_THREAD = ["--threads", "1"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "workers",
    [
        {"prefill": 2, "decode": 2},
        pytest.param({"prefill": 0, "decode": 0, "both": 2}, marks=pytest.mark.matrix),
    ],
)
def test_no_request_fails_while_every_worker_is_replaced(workers: dict[str, int]) -> None:
    corpus = max(varied_prompts(models.fetch()), key=len)
    prompts = [corpus[at : at + 40] for at in range(6)]
    with LocalCluster(
        **workers, prefill_args=ONE_THREAD, decode_args=ONE_THREAD, both_args=ONE_THREAD
    ) as cluster:
        old = {worker.name for worker in cluster.workers}
        load: Load
        load, begin_s, end_s, parts = asyncio.run(measure(cluster, prompts, 12, rate=3.0, steady_s=1.0))
        assert not [request.failure for request in load.sent if request.failure]
        assert len(load.ttfts_s(begin_s, end_s)) > 5
        assert {part["old"] for part in parts} == old
        assert {worker.name for worker in cluster.workers} == {part["new"] for part in parts}
        # A worker told to stop is not ready any more; what its probe says after that depends on the load.
        assert all({200, 503} & set(part["old_probe"]) for part in parts)
        with Client(cluster.gateway_address) as client:
            listed = {status.info.worker_id for status in client.workers().workers}
            assert listed == {worker.name for worker in cluster.workers}
            wait_for("no block held", lambda: hold_nothing(client, cluster.workers), 5.0)
