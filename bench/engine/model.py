"""A model directory with the shape of another and random weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from engine.models.load import RANDOM_WEIGHTS


def random_model(config_dir: Path, into: Path) -> Path:
    """Make a directory of a config.json and random weights.

    Args:
        config_dir: has a config.json in Hugging Face's layout.
    Raises:
        FileNotFoundError: it has none.
    """
    into.mkdir(parents=True, exist_ok=True)
    shutil.copy(config_dir / "config.json", into / "config.json")
    (into / RANDOM_WEIGHTS).write_text(json.dumps({"seed": 0}))
    return into
