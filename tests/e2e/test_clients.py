"""The examples of docs/clients.md, one a language, against a real cluster: stream, cancel, a rich error."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from baton.client import Client
from baton.cluster import LocalCluster
from tests.support.languages import REPO, make_cpp, npm_install, run
from tests.support.traffic import hold_nothing, wait_for

EXAMPLES = REPO / "docs" / "examples"
PROMPT = "The capital of France is"

Example = Callable[..., str]


@pytest.fixture(scope="module", params=["python", "node", "cpp"])
def example(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Example:
    """Run an example with arguments; returns what it printed."""
    at = tmp_path_factory.mktemp("example") / request.param
    command: list[str | Path]
    if request.param == "python":
        command = [sys.executable, EXAMPLES / "python" / "generate.py"]
    elif request.param == "node":
        command = ["node", npm_install(EXAMPLES / "node", at) / "generate.js"]
    else:
        command = [make_cpp(EXAMPLES / "cpp", at)]
    return lambda *arguments: run(*command, *arguments, timeout_s=90)


def test_an_example_streams(example: Example, cluster: LocalCluster) -> None:
    printed = example(cluster.gateway_address, "stream", PROMPT)
    text, last = printed.removesuffix("\n").rsplit("\n", 1)
    assert "Paris" in text
    assert last == "[FINISH_REASON_LENGTH, 16 tokens]"


def test_an_example_cancels_and_nothing_is_held(example: Example, cluster: LocalCluster) -> None:
    printed = example(cluster.gateway_address, "cancel")
    assert printed.startswith("cancelled after ")
    assert 3 <= int(printed.split()[2]) < 2000
    with Client(cluster.gateway_address) as client:
        wait_for("blocks given back", lambda: hold_nothing(client, cluster.workers), 5.0)


def test_an_example_reads_a_rich_error(example: Example, cluster: LocalCluster) -> None:
    printed = example(cluster.gateway_address, "error")
    found = dict(line.split(" ", 1) for line in printed.splitlines())
    assert found == {
        "status": "INVALID_ARGUMENT",
        "reason": "INVALID_ARGUMENT",
        "field": "sampling.temperature",
        "retry": "no",
        "message": "sampling.temperature: must be from 0 to 2, got 9",
    }
