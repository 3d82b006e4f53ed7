"""One gateway of several processes: clients notice nothing, also when one of them dies."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path

import pytest

from baton.client import Client
from baton.cluster import LocalCluster
from baton.errors import OverloadedError
from tests.support.tiny_models import TinyLlama, save_tiny_llama

SMALL = ("--kv-bytes", "4M", "--threads", "1")


def children(pid: int) -> set[int]:
    return {int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()}


def answers(cluster: LocalCluster, count: int) -> set[tuple[int, ...]]:
    """Ask over new connections, which the kernel spreads over the processes."""
    found = set()
    for _ in range(count):
        with Client(cluster.gateway_address) as client:
            answer = client.complete("hello", max_tokens=4, temperature=0.0, ignore_eos=True)
            found.add(tuple(answer.token_ids))
    return found


def refused_everywhere(cluster: LocalCluster, running: int) -> None:
    """With as many streams as the limit, whichever process has them, every other request is refused."""
    with contextlib.ExitStack() as stack:
        for _ in range(running):
            client = stack.enter_context(Client(cluster.gateway_address))
            stream = client.generate("hello", max_tokens=3000, temperature=0.0, ignore_eos=True)
            stack.callback(stream.close)
            next(stream)
        for _ in range(8):
            with Client(cluster.gateway_address) as client, pytest.raises(OverloadedError) as caught:
                client.complete("hello", max_tokens=4)
            assert caught.value.reason == "QUEUE_FULL"


def test_processes_share_the_ports_and_one_that_dies_comes_back(tmp_path: Path) -> None:
    model = save_tiny_llama(tmp_path / "tiny", TinyLlama(context_length=4096))
    cluster = LocalCluster(
        str(model),
        gateway_processes=2,
        gateway_args=("--max-in-flight", "3"),
        prefill_args=SMALL,
        decode_args=SMALL,
        run_dir=tmp_path / "run",
    )
    with cluster:
        before = children(cluster.gateway.pid)
        assert len(before) == 2
        first = answers(cluster, 8)
        assert len(first) == 1
        refused_everywhere(cluster, running=3)
        os.kill(before.pop(), signal.SIGKILL)
        deadline = time.monotonic() + 30
        while len(children(cluster.gateway.pid)) < 2 or children(cluster.gateway.pid) & before != before:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        time.sleep(2.0)  # until it listens again; workers have registered by then
        assert answers(cluster, 8) == first
        assert before < children(cluster.gateway.pid)
        pids = children(cluster.gateway.pid)
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
