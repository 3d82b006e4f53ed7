"""Kernel sources, their options and the key of a compiled module. Pure: no driver, no cupy."""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from engine.backends.cuda.errors import UnknownKernelError

SOURCE_DIR = Path(__file__).resolve().parents[3] / "cuda"
DefineValue = int | str
_INCLUDE = re.compile(r'^\s*#\s*include\s+"([^"]+)"', re.MULTILINE)


@dataclass(frozen=True)
class Source:
    """One .cu file with one set of defines.

    Attributes:
        name: the file's stem.
        defines: sorted (macro, value) pairs.
        folder: where the file and its headers lie.
    """

    name: str
    defines: tuple[tuple[str, DefineValue], ...]
    folder: Path = SOURCE_DIR

    @classmethod
    def of(cls, name: str, defines: Mapping[str, DefineValue], folder: Path = SOURCE_DIR) -> "Source":
        """Name a source.

        Raises:
            UnknownKernelError: there is no such file.
        """
        if not (folder / f"{name}.cu").is_file():
            raise UnknownKernelError(name, str(folder))
        return cls(name, tuple(sorted(defines.items())), folder)

    def text(self) -> str:
        """The .cu file's text."""
        return (self.folder / f"{self.name}.cu").read_text(encoding="utf-8")

    def headers(self) -> dict[str, str]:
        """Text of every header reached by quoted includes, by name."""
        found: dict[str, str] = {}
        pending = _INCLUDE.findall(self.text())
        while pending:
            header = pending.pop()
            if header not in found:
                found[header] = (self.folder / header).read_text(encoding="utf-8")
                pending.extend(_INCLUDE.findall(found[header]))
        return dict(sorted(found.items()))

    def options(self, arch: str) -> tuple[str, ...]:
        """NVRTC options. Headers enter the key, so an edited header recompiles."""
        return (
            f"-arch={arch}",
            "-std=c++17",
            "--ptxas-options=-v",
            *(f"-D{macro}={value}" for macro, value in self.defines),
        )

    def cubin_name(self, arch: str) -> str:
        """File name of the compiled module: name, arch, and a hash of sources, headers and options."""
        digest = hashlib.sha256()
        for part in (self.text(), *self.headers().values(), *self.options(arch)):
            digest.update(part.encode())
            digest.update(b"\0")
        return f"{self.name}-{arch}-{digest.hexdigest()[:16]}.cubin"


@dataclass(frozen=True)
class Build:
    """One module that `make kernels` makes ahead.

    Attributes:
        name, defines: as for loader.load.
        hot: a register spill in it is an error.
    """

    name: str
    defines: Mapping[str, DefineValue]
    hot: bool = True
