"""A seeded sampled request gives the same tokens alone, among others, and after a preemption."""

from __future__ import annotations

import asyncio
from pathlib import Path

from baton.client import Client
from baton.cluster import LocalCluster
from baton.errors import RequestError
from tests.support.golden import varied_prompts
from tests.support.traffic import complete_all, loads, wait_for

SAMPLING = {"temperature": 0.9, "top_p": 0.95, "seed": 20261122, "ignore_eos": True, "max_tokens": 36}
BLOCK_BYTES = 30 * 2 * 3 * 16 * 64 * 4


def tokens_of(address: str, prompts: list[list[int]]) -> list[tuple[int, ...]]:
    answers = asyncio.run(complete_all(address, prompts, **SAMPLING))
    tokens = []
    for answer in answers:
        assert not isinstance(answer, RequestError), answer
        tokens.append(answer.token_ids)
    return tokens


def test_same_tokens_alone_in_a_batch_and_after_preemption(cluster: LocalCluster, model_dir: Path) -> None:
    prompts = [prompt for prompt in varied_prompts(model_dir) if 8 <= len(prompt) <= 300][:16]
    assert len(prompts) == 16
    alone = [tokens_of(cluster.gateway_address, [prompt])[0] for prompt in prompts[:4]]
    together = tokens_of(cluster.gateway_address, prompts)
    assert together[:4] == alone

    blocks = sum(-(-(len(prompt) + 8) // 16) for prompt in prompts)
    with (
        LocalCluster(decode_args=["--kv-bytes", str(blocks * BLOCK_BYTES)]) as small,
        Client(small.gateway_address) as client,
    ):
        preempted = tokens_of(small.gateway_address, prompts)
        wait_for("a preemption in the report", lambda: loads(client)["decode-0"].preemptions > 0, 2.0)
    assert preempted == together
