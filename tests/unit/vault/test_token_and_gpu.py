from __future__ import annotations

from pathlib import Path

import pytest

from services.vault.config import VaultConfig
from services.worker import gpu
from services.worker.config import WorkerConfig
from services.worker.vault_token import is_token, make_token, read_token, token_path


def test_a_token_is_made_once_and_is_nobody_elses(tmp_path: Path) -> None:
    path = token_path(str(tmp_path / "vault"), "")
    assert path.name == "vault.token"
    token = make_token(path)
    assert len(token) == 64
    assert path.stat().st_mode & 0o777 == 0o600
    assert make_token(path) == read_token(path) == token
    path.chmod(0o640)
    with pytest.raises(ValueError, match=r"token_file: .*open to others \(mode 640\)"):
        read_token(path)


def test_a_token_that_is_none(tmp_path: Path) -> None:
    short = tmp_path / "short"
    short.write_text("abc\n")
    short.chmod(0o600)
    for path, message in ((short, "3 characters, at least 16"), (tmp_path / "none", "cannot read")):
        with pytest.raises(ValueError, match=f"token_file: .*{message}"):
            read_token(path)
    with pytest.raises(ValueError, match="token_file: cannot make"):
        make_token(tmp_path / "no" / "directory")


def test_tokens_are_compared_whole() -> None:
    assert is_token("secret", "secret")
    assert is_token(b"secret", "secret")
    for shown in (None, "", "secre", "secret ", "ſecret"):
        assert not is_token(shown, "secret")


@pytest.mark.parametrize(
    ("visible", "number", "after"),
    [("", 0, ""), ("", 2, "2,0,1"), ("4,5", 1, "5,4"), ("GPU-a,GPU-b", 1, "GPU-b,GPU-a")],
)
def test_the_gpu_asked_for_comes_first_and_the_others_stay(
    visible: str, number: int, after: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "_numbers", lambda: ["0", "1", "2"])
    environ = {gpu.VISIBLE: visible} if visible else {}
    gpu.put_gpu_first(number, environ)
    assert environ.get(gpu.VISIBLE, "") == (after or visible)


def test_a_gpu_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "_numbers", list)
    with pytest.raises(ValueError, match="gpu: 0 is asked for, there are 0"):
        gpu.put_gpu_first(0, {})
    with pytest.raises(ValueError, match="gpu: 2 is asked for, there are 2"):
        gpu.put_gpu_first(2, {gpu.VISIBLE: "0,1"})
    with pytest.raises(ValueError, match="gpu: must be at least 0"):
        WorkerConfig(gpu=-1)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("socket", ""),
        ("kv_bytes", 0),
        ("settle_s", -1.0),
        ("metrics_port", 70000),
        ("log_level", "x"),
        ("gpu", -1),
    ],
)
def test_a_vaults_settings_are_checked(field: str, value: str | int | float) -> None:
    with pytest.raises(ValueError, match=f"^{field}: "):
        VaultConfig(**({"socket": "/tmp/v", "model": "m", "model_name": "m"} | {field: value}))  # type: ignore[arg-type]
