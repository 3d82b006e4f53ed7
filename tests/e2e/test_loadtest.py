"""The command against a real cluster: verified answers, ill-behaved clients, no block left."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from baton.cli.main import main
from baton.cluster import LocalCluster


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_a_verified_run(cluster: LocalCluster, protocol: str, tmp_path: Path) -> None:
    url = f"grpc://{cluster.gateway_address}" if protocol == "grpc" else cluster.http_url
    out = tmp_path / "result"
    flags = """
        --rate 4 --requests 24 --input uniform:20:90 --output 12 --distinct 12 --prefix-tokens 16 --verify
        --cancel-share 0.1 --slow-share 0.1 --slow-delay 0.1 --quiet
    """
    where = ["--registry", cluster.gateway_address, "--out", str(out)]
    status = main(["loadtest", "run", url, *where, *shlex.split(flags)])
    result = json.loads(out.with_suffix(".json").read_text())
    assert status == 0, result["verification"]
    assert result["measures"]["errors"] == {}
    assert result["verification"]["answers"] >= 20
    assert set(result["blocks_held"].values()) == {0}
    assert len(result["blocks_held"]) == 2
    assert result["samples"]
    assert "Requests in each worker" in out.with_suffix(".html").read_text()
    assert len(out.with_suffix(".jsonl").read_text().splitlines()) == 24
