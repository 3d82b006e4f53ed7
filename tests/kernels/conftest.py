"""All but test_cpu_*.py runs on a GPU; without one each test is skipped with that reason."""

from pathlib import Path

import pytest
import torch

_HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    absent = pytest.mark.skip(reason="no NVIDIA GPU on this machine")
    for item in items:
        if _HERE in item.path.parents and not item.path.name.startswith("test_cpu_"):
            item.add_marker(pytest.mark.gpu)
            if not torch.cuda.is_available():
                item.add_marker(absent)


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(torch.seed())  # fresh inputs on every run
