"""Prints the project's dependencies, one a line: requirements.py pyproject.toml [extra]."""

import sys
import tomllib
from pathlib import Path


def requirements(pyproject: Path, extra: str = "") -> list[str]:
    """Return the project's dependencies, or those of one of its extras."""
    project = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]
    found: list[str] = project["optional-dependencies"][extra] if extra else project["dependencies"]
    return found


if __name__ == "__main__":
    print("\n".join(requirements(Path(sys.argv[1]), *sys.argv[2:])))
