"""What the documents point to exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
PATH = re.compile(
    r"`((?:baton|bench|cuda|deploy|docker|docs|engine|kvhash|kvtransfer|loadtest|services|tests)/[\w./-]*)`"
)
LINK = re.compile(r"\]\(([^)#\s]+)")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: str(document.relative_to(ROOT)))
def test_paths_and_links_exist(document: Path) -> None:
    text = document.read_text()
    paths = [ROOT / path for path in PATH.findall(text)]
    links = [document.parent / link for link in LINK.findall(text) if not re.match(r"\w+:", link)]
    missing = [str(path) for path in (*paths, *links) if not path.exists()]
    # Generated from protos/; a checkout without stubs lacks it.
    assert not [path for path in missing if not path.endswith("baton/v1")]
