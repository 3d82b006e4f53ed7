"""Runs the `baton` command as a process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

BATON = [sys.executable, "-m", "baton.cli.main"]


def environ_with_cache(cache: Path, model_dir: Path) -> dict[str, str]:
    """Return an environment whose cache names no other cluster, and has a link to the model."""
    (cache / "models").mkdir(parents=True)
    (cache / "models" / model_dir.name).symlink_to(model_dir)
    return {**os.environ, "BATON_CACHE": str(cache)}


def baton(environ: dict[str, str], *arguments: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
    """Run a command and wait for its end."""
    return subprocess.run(
        [*BATON, *arguments], env=environ, capture_output=True, text=True, timeout=timeout, check=False
    )
