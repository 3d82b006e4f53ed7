from __future__ import annotations

from pathlib import Path

import pytest

from services.common.config import parse_config
from services.gateway.config import GatewayConfig


def test_the_name_is_the_directorys_unless_given(tmp_path: Path) -> None:
    model = tmp_path / "some-model"
    model.mkdir()
    assert parse_config(GatewayConfig, "gateway", ["--model", str(model)]).served_name == "some-model"
    named = parse_config(GatewayConfig, "gateway", ["--model", str(model), "--model-name", "m"])
    assert named.served_name == "m"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--grpc-port", "70000"], "grpc_port: must be from 0 to 65535"),
        (["--max-queue", "-1"], "max_queue: must be at least 0"),
        (["--beat-interval-ms", "0"], "beat_interval_ms: must be at least 1"),
        (["--request-timeout-s", "0"], "request_timeout_s: must be above 0"),
        (["--log-level", "loud"], "log_level: must be debug"),
        (["--max-body-bytes", "many"], "expected a size"),
    ],
)
def test_bad_flags_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], message: str
) -> None:
    with pytest.raises(SystemExit):
        parse_config(GatewayConfig, "gateway", ["--model", str(tmp_path), *flags])
    assert message in capsys.readouterr().err


def test_a_model_that_is_no_directory_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_config(GatewayConfig, "gateway", ["--model", "/nowhere"])
    assert "'/nowhere' is not a directory" in capsys.readouterr().err


def test_the_environment_sets_what_flags_leave_out(tmp_path: Path) -> None:
    environ = {"BATON_GATEWAY_MAX_BODY_BYTES": "2M", "BATON_GATEWAY_MODEL": str(tmp_path)}
    config = parse_config(GatewayConfig, "gateway", [], environ=environ)
    assert config.max_body_bytes == 2 << 20
