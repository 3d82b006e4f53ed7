"""Keeps what was chosen for a product in the user's cache, so that all processes of a machine take the same.

A file is named by all that a choice depends on. Whoever finds none measures and writes it; others that
start meanwhile wait for that, since two that measure at once would disturb each other.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from engine.backends.cuda import loader
from engine.backends.cuda.product_choice import Choices

_log = logging.getLogger(__name__)
_FORMAT = 1  # raised when files, or the way to choose, change


def folder() -> Path:
    """Where the files are."""
    return loader.cache_dir().parent / "products"


def kept(facts: tuple[object, ...], measure: Callable[[], Choices]) -> Choices:
    """What is kept under `facts`, or what `measure` gives, which is kept then.

    Args:
        facts: all that the choice depends on, the same in every process.
    """
    text = "\n".join(str(fact) for fact in (_FORMAT, *facts))
    path = folder() / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.json"
    found = _read(path)
    if found is not None:
        return found
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _alone(path.with_suffix(".lock")):
            found = _read(path)
            if found is None:
                found = measure()
                loader.store(found.to_json().encode(), path)
            return found
    except OSError as error:
        _log.warning("choices of products cannot be kept in %s (%s): each start measures", path.parent, error)
        return measure()


def _read(path: Path) -> Choices | None:
    try:
        return Choices.from_json(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError as error:
        _log.warning("%s: %s; it is made again", path, error)
        return None


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # gone with the file, also if this process is killed
        yield
