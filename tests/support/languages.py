"""Languages that examples and conformance suites are written in: made ready once, or a reason to skip."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).parents[2]


def npm_install(directory: Path, at: Path) -> Path:
    """Copy a package into `at`, install what it needs, and return where; skips where there is no Node."""
    for program in ("node", "npm"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed (apt-get install nodejs npm)")
    shutil.copytree(directory, at, ignore=shutil.ignore_patterns("node_modules"))
    flags = ("--no-audit", "--no-fund", "--no-package-lock", "--ignore-scripts", "--loglevel=error")
    run("npm", "install", *flags, cwd=at)
    return at


def make_cpp(directory: Path, out: Path) -> Path:
    """Build a C++ example into `out`; skips where there is no compiler or no gRPC for it."""
    for program, package in (
        ("g++", "g++"),
        ("protoc", "protobuf-compiler"),
        ("grpc_cpp_plugin", "protobuf-compiler-grpc"),
        ("pkg-config", "pkg-config"),
    ):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed (apt-get install {package} libgrpc++-dev)")
    run("make", "-s", "-j2", f"OUT={out}", f"PYTHON={sys.executable}", "CXXFLAGS=-O0", cwd=directory)
    return out / "generate"


def run(*command: str | Path, cwd: Path = REPO, timeout_s: float = 240, **environ: str) -> str:
    """Run a command to its end and return what it printed; fails the test if it fails."""
    done = subprocess.run(
        command, cwd=cwd, timeout=timeout_s, capture_output=True, text=True, env={**_environ(), **environ}
    )
    assert done.returncode == 0, f"{command}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def _environ() -> dict[str, str]:
    return {**os.environ, "BATON_PROTOS": str(REPO / "protos"), "PYTHONPATH": str(REPO)}
