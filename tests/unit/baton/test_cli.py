"""Flags, variables, exit statuses and figures of the command."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import pytest

from baton import runs
from baton.cli.figures import Stopwatch, size, summary
from baton.cli.main import COMMANDS, main
from baton.cli.options import Options, at_least, gateway_address, num_bytes, port
from baton.client import DEFAULT_ADDRESS
from baton.cluster import LocalCluster
from baton.errors import ClusterError
from baton.v1.inference_pb2 import Delta, Finished, Handoff, Usage
from baton.v1.sampling_pb2 import FinishReason


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BATON_CACHE", str(tmp_path))
    monkeypatch.delenv("BATON_ADDRESS", raising=False)
    return tmp_path


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    options = Options(parser, "up")
    options.value("--prefill", "1", "workers", at_least(1))
    options.value("--http-port", "8000", "port", port)
    options.switch("--restart", "restart")
    options.address()
    return parser.parse_args(arguments)


def test_flag_wins_over_variable_wins_over_default(monkeypatch: pytest.MonkeyPatch) -> None:
    assert parse([]).prefill == 1
    monkeypatch.setenv("BATON_UP_PREFILL", "3")
    assert parse([]).prefill == 3
    assert parse(["--prefill", "2"]).prefill == 2


def test_switches_can_be_turned_off(monkeypatch: pytest.MonkeyPatch) -> None:
    assert parse([]).restart is False
    monkeypatch.setenv("BATON_UP_RESTART", "true")
    assert parse([]).restart is True
    assert parse(["--no-restart"]).restart is False


@pytest.mark.parametrize("arguments", [["--prefill", "0"], ["--prefill", "two"], ["--http-port", "70000"]])
def test_values_out_of_range_are_usage_errors(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        parse(arguments)
    assert caught.value.code == 2
    assert arguments[0] in capsys.readouterr().err


def test_variables_are_checked_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("BATON_UP_HTTP_PORT", "-1")
    with pytest.raises(SystemExit):
        parse([])
    assert "--http-port: must be from 0 to 65535, got -1" in capsys.readouterr().err


@pytest.mark.parametrize("command", [command for command in COMMANDS if command != "serve"])
def test_help_of_every_command(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([command, "--help"])
    assert caught.value.code == 0
    assert "--" in capsys.readouterr().out


def test_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], ["fly"], ["generate"], ["up", "--prefil-typo", "1"]):
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        assert caught.value.code == 2
    assert main(["serve"]) == 2
    assert main(["serve", "coffee"]) == 2
    assert main(["serve", "--help"]) == 0
    assert "gateway,prefill,decode,both" in capsys.readouterr().err


def test_a_known_error_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["up", "--model", "/no/such/model"]) == 1
    assert capsys.readouterr().err == (
        "baton: model: '/no/such/model' is neither a path nor a model that can be fetched "
        "(SmolLM2-135M-Instruct)\n"
    )


def test_nothing_heavy_is_imported_before_it_is_needed() -> None:
    code = (
        "import sys, baton.cli.main, baton.child; from baton.v1 import kv_pb2; "
        "print(*(name for name in ('torch', 'numpy', 'grpc', 'rich', 'engine') if name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "\n"


def test_the_cluster_that_is_up_is_found_until_it_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    args = parse([])
    assert gateway_address(args) == DEFAULT_ADDRESS
    run = runs.Run()
    assert runs.current() is None
    run.publish("127.0.0.1:1234", "http://127.0.0.1:80")
    assert gateway_address(args) == "127.0.0.1:1234"
    assert gateway_address(parse(["--address", "other:1"])) == "other:1"
    run.close()
    assert runs.current() is None
    assert gateway_address(args) == DEFAULT_ADDRESS


def test_a_cluster_whose_launcher_died_is_not_found(cache: Path) -> None:
    code = "from baton import runs; import os; runs.Run().publish('a:1', 'http://a'); os._exit(9)"
    subprocess.run([sys.executable, "-c", code], check=False)
    assert (cache / "runs" / "current.json").exists()
    assert runs.current() is None


def test_old_runs_are_removed(cache: Path) -> None:
    for index in range(runs.KEPT_RUNS + 3):
        (cache / "runs" / f"20250101-0000{index:02d}-1").mkdir(parents=True)
    run = runs.Run()
    kept = sorted(path.name for path in (cache / "runs").iterdir())
    assert len(kept) == runs.KEPT_RUNS
    assert run.dir.name in kept
    run.close()


def test_figures() -> None:
    handoff = Handoff(
        transport="shared_memory", blocks=3, bytes=3 << 20, prefill_worker="p", decode_worker="d"
    )
    finished = Finished(
        reason=FinishReason.FINISH_REASON_STOP,
        usage=Usage(prompt_tokens=40, cached_tokens=16, completion_tokens=5),
        handoff=handoff,
    )
    watch = Stopwatch()
    watch.first_token_s, watch.end_s = 0.5, 0.9
    assert summary(finished, watch) == [
        "40 prompt tokens (16 cached), 5 generated, ended by stop",
        "TTFT 500.0 ms, TPOT 100.0 ms, 5.6 tokens/s",
        "3 KV blocks (3.0 MiB) handed over from p to d by shared_memory, 0 already there, 0.0 ms exposed",
    ]
    finished.ClearField("handoff")
    finished.usage.completion_tokens = 1
    assert summary(finished, watch)[1:] == ["TTFT 500.0 ms, TPOT –, 1.1 tokens/s"]


def test_the_stopwatch_waits_for_a_token() -> None:
    watch = Stopwatch()
    watch.see(Delta(text=""))
    assert watch.first_token_s is None
    watch.see(Delta(token_ids=[1]))
    first = watch.first_token_s
    watch.see(Delta(token_ids=[2]))
    assert first is not None
    assert watch.first_token_s == first <= watch.end_s


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (5 << 30, "5.0 GiB"), (5 << 40, "5120.0 GiB")],
)
def test_sizes(num_bytes: int, text: str) -> None:
    assert size(num_bytes) == text


def test_workers_get_the_gpus_by_turns(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    started: dict[str, str] = {}

    class Refusing:
        def __init__(self, name: str, role: str, flags: tuple[str, ...], *rest: object) -> None:
            started[name] = flags[flags.index("--gpu") + 1] if "--gpu" in flags else ""
            if name == "both-0":
                raise ClusterError("that is enough")
            self.role, self.exit_status = role, 0

        def terminate(self) -> None: ...

        def wait(self, timeout_s: float) -> bool:
            return True

    monkeypatch.setattr("baton.cluster.ServiceProcess", Refusing)
    with pytest.raises(ClusterError, match="enough"):
        LocalCluster(str(tmp_path), 2, 1, 1, gpus=(0, 1), run_dir=tmp_path).start()
    assert started == {"gateway": "", "prefill-0": "0", "prefill-1": "1", "decode-0": "0", "both-0": "1"}


@pytest.mark.parametrize(("text", "expected"), [("4096", 4096), ("1.5K", 1536), ("60G", 60 << 30)])
def test_num_bytes(text: str, expected: int) -> None:
    assert num_bytes(text) == expected


@pytest.mark.parametrize("text", ["", "-1", "60X", "G"])
def test_num_bytes_refuses(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="expected a size"):
        num_bytes(text)
