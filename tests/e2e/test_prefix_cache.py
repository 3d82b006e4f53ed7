"""The second of two requests with a common prefix computes and transfers only its own blocks."""

from __future__ import annotations

import random

from baton.client import Client
from baton.cluster import LocalCluster
from tests.support.traffic import loads, wait_for

BLOCK = 16


def test_common_prefix_is_neither_computed_nor_sent_again(cluster: LocalCluster) -> None:
    # Drawn, since the cluster has the prompts of other tests in its caches.
    tokens = random.Random(62).sample(range(1000, 40000), 1100)
    prefix, tail_a, tail_b = tokens[:1000], tokens[1000:1050], tokens[1050:]
    with Client(cluster.gateway_address) as client:
        first = client.complete(token_ids=prefix + tail_a, temperature=0.0, max_tokens=4)
        before = loads(client)["prefill-0"]
        second = client.complete(token_ids=prefix + tail_b, temperature=0.0, max_tokens=4)
        hits = 1000 // BLOCK * BLOCK
        wait_for(
            "prefix hits in the report",
            lambda: loads(client)["prefill-0"].prefix_hit_tokens - before.prefix_hit_tokens >= hits,
            2.0,
        )
        after = loads(client)["prefill-0"]

    total_blocks = -(-1050 // BLOCK)
    assert first.finished.usage.cached_tokens == 0
    assert first.finished.handoff.blocks == total_blocks
    assert second.finished.usage.cached_tokens == hits
    assert second.finished.handoff.skipped_blocks == hits // BLOCK
    assert second.finished.handoff.blocks == total_blocks - hits // BLOCK
    assert after.prefix_hit_tokens - before.prefix_hit_tokens == hits
