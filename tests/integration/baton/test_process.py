"""Children of the launcher: how they start, end, and go when the launcher goes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from baton.errors import ClusterError
from baton.process import ServiceProcess, child_environ

STUB = """
import signal, sys, time
def main(argv):
    if "stubborn" in argv:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    print("up", flush=True)
    time.sleep(60)
"""

Start = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture
def start(tmp_path: Path) -> Start:
    """Start a stub of a service under baton.child, and wait until it runs."""
    (tmp_path / "stub_service.py").write_text(STUB)

    def start(*argv: str) -> subprocess.Popen[bytes]:
        environ = child_environ({"PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])})
        child = subprocess.Popen(
            [sys.executable, "-m", "baton.child", "stub_service", *argv],
            env=environ,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert child.stdout is not None
        assert child.stdout.readline() == b"up\n"
        return child

    return start


def test_a_child_ends_when_its_standard_input_does(start: Start) -> None:
    with start() as child:
        assert child.stdin is not None
        child.stdin.close()
        assert child.wait(5) == -signal.SIGTERM


def test_a_child_that_does_not_stop_is_ended(start: Start) -> None:
    with start("stubborn") as child:
        assert child.stdin is not None
        child.stdin.close()
        assert child.wait(15) == 1


def test_a_service_with_a_wrong_flag_says_so(tmp_path: Path) -> None:
    log = tmp_path / "gateway.log"
    log.write_text("what an earlier process said\n")
    process = ServiceProcess("gateway", "gateway", ["--no-such-flag"], log, child_environ({}))
    with pytest.raises(ClusterError, match="gateway is not ready"):
        _ = process.address
    assert process.wait(30)
    with pytest.raises(ClusterError, match=r"(?s)gateway \(pid \d+\) ended with status 2.*--no-such-flag"):
        process.poll_ready()
    process.terminate()
    process.kill()


def test_killing_is_not_an_exit_status(tmp_path: Path) -> None:
    process = ServiceProcess("gateway", "gateway", ["--help"], tmp_path / "log", child_environ({}))
    assert not process.wait(0)
    process.kill()
    assert process.exit_status == -signal.SIGKILL
    assert "was ended by SIGKILL" in process.obituary()
