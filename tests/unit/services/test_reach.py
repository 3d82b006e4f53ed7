"""Nothing listens beyond loopback unprotected."""

from __future__ import annotations

from pathlib import Path

import pytest

from baton.certificates import make_certificates
from services.common.config import parse_config
from services.common.keys import Limits, changing, create_key
from services.common.server import ServerConfig
from services.common.tls import PeerConfig, is_loopback
from services.decode.config import DecodeConfig
from services.gateway.config import GatewayConfig
from services.worker.config import WorkerConfig


@pytest.fixture(scope="module")
def certs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("certs") / "c"
    make_certificates(folder, ["localhost"], 10)
    _, key = create_key("", Limits())
    with changing(folder / "keys.json") as ring:
        ring.keys[key.key_id] = key
    return folder


def peer(certs: Path, name: str) -> list[str]:
    files = {"cert": f"{name}.pem", "key": f"{name}.key", "ca": "ca.pem"}
    return [part for flag, file in files.items() for part in (f"--peer-{flag}", str(certs / file))]


def public(certs: Path) -> list[str]:
    return ["--tls-cert", str(certs / "server.pem"), "--tls-key", str(certs / "server.key")]


def gateway(tmp_path: Path, *flags: str) -> GatewayConfig:
    return parse_config(GatewayConfig, "gateway", ["--model", str(tmp_path), *flags])


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.1", "::1", "[::1]", "localhost"])
def test_loopback_is(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "example.com", "", "localhost.example.com"])
def test_everything_else_is_not(host: str) -> None:
    assert not is_loopback(host)


def test_a_gateway_needs_all_three(tmp_path: Path, certs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keys = ["--keys-file", str(certs / "keys.json")]
    parts = {"--tls-cert": public(certs), "--keys-file": keys, "--peer-cert": peer(certs, "gateway")}
    wide = ["--host", "0.0.0.0", "--registry-port", "0"]
    gateway(tmp_path, *wide, *(flag for part in parts.values() for flag in part))
    for left_out in parts:
        flags = [flag for name, part in parts.items() if name != left_out for flag in part]
        with pytest.raises(SystemExit):
            gateway(tmp_path, *wide, *flags)
        told = capsys.readouterr().err
        assert "refusing to listen on '0.0.0.0'" in told
        assert left_out in told
    gateway(tmp_path, *wide, "--insecure")


def test_protection_needs_a_registry_port_of_its_own(
    tmp_path: Path, certs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for flags in (public(certs), peer(certs, "gateway"), ["--keys-file", str(certs / "keys.json")]):
        with pytest.raises(SystemExit):
            gateway(tmp_path, *flags)
        assert "needs --registry-port" in capsys.readouterr().err
        gateway(tmp_path, *flags, "--registry-port", "0")


def test_a_worker_checks_its_data_plane_too(certs: Path) -> None:
    worker = WorkerConfig(kv_host="0.0.0.0")
    with pytest.raises(ValueError, match="kv_host: refusing"):
        DecodeConfig(ServerConfig(), worker, None, None)  # type: ignore[arg-type]
    files = [str(certs / name) for name in ("worker.pem", "worker.key", "ca.pem")]
    DecodeConfig(ServerConfig(peers=PeerConfig(*files)), worker, None, None)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="host: refusing"):
        ServerConfig(host="0.0.0.0")


def test_files_are_checked_at_the_start(certs: Path, tmp_path: Path) -> None:
    cert, key, ca = (str(certs / name) for name in ("worker.pem", "worker.key", "ca.pem"))
    with pytest.raises(ValueError, match="peer_key: must be set"):
        PeerConfig(cert, "", ca)
    with pytest.raises(ValueError, match="peer_ca: cannot read"):
        PeerConfig(cert, key, str(tmp_path / "none"))
    with pytest.raises(ValueError, match="not a PEM certificate and its key"):
        PeerConfig(cert, str(certs / "gateway.key"), ca)


def test_gateways_may_be_given_as_ranges_of_ports() -> None:
    config = WorkerConfig(gateway=("a:5", "b:7-9"))
    assert config.gateways == ("a:5", "b:7", "b:8", "b:9")
    for wrong in ("a", "a:", ":5", "a:9-7", "a:x"):
        with pytest.raises(ValueError, match="gateway: must be host:port"):
            WorkerConfig(gateway=(wrong,))
