"""A vault on a CPU, in processes: it outlives its workers, and they hand over without moving a byte."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from baton.client import Client
from baton.cluster import LocalCluster
from baton.process import ServiceProcess, child_environ
from tests.support.tiny_models import save_tiny_llama
from tests.support.traffic import loads

PROMPTS = [[3 + (i * i + n) % 250 for i in range(200 + n)] for n in range(3)]
OPTIONS = {"max_tokens": 8, "temperature": 0.0, "ignore_eos": True}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return save_tiny_llama(tmp_path / "tiny")


@pytest.fixture
def vault(model: Path, tmp_path: Path) -> Iterator[ServiceProcess]:
    flags = ["--socket", str(tmp_path / "socket"), "--model", str(model), "--model-name", "tiny"]
    flags += ["--backend", "cpu", "--kv-bytes", "4M", "--settle-s", "0.2"]
    process = ServiceProcess("vault", "vault", flags, tmp_path / "vault.log", child_environ({}))
    deadline = time.monotonic() + 60
    while not process.poll_ready():
        assert time.monotonic() < deadline, process.obituary()
        time.sleep(0.02)
    yield process
    process.kill()


def test_a_vault_outlives_its_workers(model: Path, vault: ServiceProcess, tmp_path: Path) -> None:
    socket = tmp_path / "socket"
    shared = ["--vault", str(socket), "--threads", "1"]
    with (
        LocalCluster(
            str(model),
            prefill_args=[*shared, "--kv-bytes", "256K"],
            decode_args=[*shared, "--kv-bytes", "3M"],
        ) as cluster,
        Client(cluster.gateway_address) as client,
    ):

        def answers() -> list[tuple[int, ...]]:
            return [client.complete(token_ids=prompt, **OPTIONS).token_ids for prompt in PROMPTS]

        undisturbed = answers()
        victim = next(worker for worker in cluster.workers if worker.role == "decode")
        cluster.kill(victim)
        cluster.restart(victim)
        assert answers() == undisturbed
        prefill = next(worker for worker in cluster.workers if worker.role == "prefill")
        load = loads(client)[prefill.name]
        assert load.transferred_blocks > 0
        assert load.transferred_bytes == 0
        assert vault.exit_status is None
    assert vault.log.read_text().count('"message": "attached"') == 3
    vault.terminate()
    assert vault.wait(20)
    assert vault.exit_status == 0
    assert not socket.exists()
