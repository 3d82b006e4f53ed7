"""The gateway's process."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc


def command(model: Path, *flags: str) -> list[str]:
    return [sys.executable, "-m", "services.gateway.main", "--model", str(model), "--http-port", "0", *flags]


def test_ready_line_health_reflection_and_a_clean_stop(byte_model: Path) -> None:
    process = subprocess.Popen(
        command(byte_model, "--grpc-port", "0"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        ready = json.loads(process.stdout.readline())
        assert ready["event"] == "ready"
        assert ready["model"] == "tiny"
        with urllib.request.urlopen(f"http://{ready['http_address']}/health", timeout=5) as response:
            assert response.status == 200
        with grpc.insecure_channel(ready["address"]) as channel:
            health = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=5)
            assert health.status == health_pb2.HealthCheckResponse.SERVING
            asked = reflection_pb2.ServerReflectionRequest(list_services="")
            stub = reflection_pb2_grpc.ServerReflectionStub(channel)
            (answer,) = stub.ServerReflectionInfo(iter([asked]), timeout=5)
            names = {service.name for service in answer.list_services_response.service}
            assert {"baton.v1.InferenceService", "baton.v1.RegistryService"} <= names
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
    finally:
        process.kill()
        _, errors = process.communicate()
    for line in errors.splitlines():
        json.loads(line)


def test_a_taken_port_is_named(byte_model: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        done = subprocess.run(
            command(byte_model, "--grpc-port", port), capture_output=True, text=True, timeout=20
        )
    assert done.returncode == 1
    assert f"cannot listen on 127.0.0.1:{port}" in done.stderr


@pytest.mark.parametrize("content", [None, "{"])
def test_a_model_without_a_usable_tokenizer_is_named(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "tokenizer.json").write_text(content)
    done = subprocess.run(command(tmp_path, "--grpc-port", "0"), capture_output=True, text=True, timeout=20)
    assert done.returncode == 1
    assert "baton serve gateway: model: " in done.stderr
    assert "tokenizer.json" in done.stderr
    assert "Traceback" not in done.stderr
