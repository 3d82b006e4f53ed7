"""Random strings through the real model's tokens: a choice of one makes the model say exactly that."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor

import pytest
from openai import OpenAI

from baton.cluster import LocalCluster
from tests.support.strings import random_text


@pytest.mark.parametrize("count", [30, pytest.param(500, marks=pytest.mark.matrix)])
def test_random_strings_come_as_they_were(cluster: LocalCluster, count: int) -> None:
    seed = random.SystemRandom().getrandbits(32)
    rng = random.Random(seed)
    strings = [random_text(rng) for _ in range(count)]

    def say(client: OpenAI, text: str) -> list[str]:
        chunks = client.completions.create(
            model=cluster.model_name,
            prompt="Say:",
            max_tokens=200,
            stream=True,
            extra_body={"structured_outputs": {"choice": [text]}},
        )
        return [chunk.choices[0].text for chunk in chunks]

    with (
        OpenAI(base_url=f"{cluster.http_url}/v1", api_key="none", max_retries=0) as client,
        ThreadPoolExecutor(16) as pool,
    ):
        answers = list(pool.map(lambda text: say(client, text), strings))
    for text, parts in zip(strings, answers, strict=True):
        assert "".join(parts) == text, (seed, text)
        assert not any("\ufffd" in part for part in parts)
