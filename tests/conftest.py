"""Fixtures for every tier."""

from __future__ import annotations

from pathlib import Path

import pytest

from baton import models


@pytest.fixture(scope="session")
def model_dir() -> Path:
    """The default model; converted on first use, into the same cache that `baton up` uses."""
    return models.fetch(progress=models.show_progress)
