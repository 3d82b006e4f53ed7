"""From a kernel's name to something that launches.

load("rms_norm", defines={"DTYPE": 0})
  1 key      name + arch + hash of sources, headers, options      source.py
  2 look     build/kernels (made ahead), then the user's cache
  3 compile  NVRTC, stored in the user's cache                     driver.py
  4 Module   module.kernel("rms_norm_rows")(grid, block, *args)
"""

import functools
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch

from engine.backends.cuda import driver
from engine.backends.cuda.launches import Argument, Dim3, Launches
from engine.backends.cuda.source import SOURCE_DIR, DefineValue, Source
from engine.backends.cuda.target import DeviceFacts

AHEAD_DIR = SOURCE_DIR.parent / "build" / "kernels"
DEFAULT_SHARED_BYTES = 48 * 1024


class Kernel:
    """One entry point of a loaded module."""

    def __init__(self, raw: driver.RawKernel) -> None:
        self._raw = raw
        self._shared_limit = DEFAULT_SHARED_BYTES
        self._launch = Launches(raw.kernel.ptr)

    def __call__(
        self,
        grid: Dim3,
        block: Dim3,
        *args: Argument,
        shared_bytes: int = 0,
        overlaps: bool = False,
    ) -> None:
        """Launch on torch's current stream, which may be capturing; see launches.py for the arguments."""
        if shared_bytes > self._shared_limit:
            self._raw.max_dynamic_shared_size_bytes = shared_bytes
            self._shared_limit = shared_bytes
        self._launch(grid, block, args, shared_bytes, driver.current_stream(), overlaps)


class Module:
    """A compiled .cu file on one device."""

    def __init__(self, loaded: driver.LoadedModule) -> None:
        self._loaded = loaded
        self._kernels: dict[str, Kernel] = {}

    def kernel(self, name: str) -> Kernel:
        """The extern "C" entry point of that name."""
        if name not in self._kernels:
            self._kernels[name] = Kernel(self._loaded.get_function(name))
        return self._kernels[name]


def cache_dir() -> Path:
    """Where modules compiled at run time are kept."""
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "baton" / "kernels"


def store(cubin: bytes, path: Path) -> None:
    """Write a file whole or not at all; processes may race to write the same one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
        file.write(cubin)
    os.replace(file.name, path)


def find_or_compile(source: Source, arch: str, folders: tuple[Path, ...]) -> Path:
    """Path of the cubin; compiles into the last folder when none has it.

    Raises:
        CompilerMissingError, CompileError: see driver.compile_cubin.
    """
    name = source.cubin_name(arch)
    for folder in folders:
        if (folder / name).is_file():
            return folder / name
    cubin, _ = driver.compile_cubin(source, arch)
    store(cubin, folders[-1] / name)
    return folders[-1] / name


@functools.cache
def _load(name: str, defines: tuple[tuple[str, DefineValue], ...], device: int) -> Module:
    arch = driver.device_facts(device).arch
    source = Source.of(name, dict(defines))
    return Module(driver.load_module(find_or_compile(source, arch, (AHEAD_DIR, cache_dir()))))


def load(name: str, *, defines: Mapping[str, DefineValue] | None = None) -> Module:
    """Load `cuda/<name>.cu` for torch's current device; the same module on later calls.

    Raises:
        KernelError: one of its kinds, each a sentence that says what to do.
    """
    device = current_device()
    return _load(name, tuple(sorted((defines or {}).items())), device)


def current_device() -> int:
    """Torch's current device, after checking that there is one.

    Raises:
        DriverMissingError, DeviceMissingError, CupyMissingError
    """
    driver.device_facts(0)
    return torch.cuda.current_device()


def facts() -> DeviceFacts:
    """Facts of torch's current device."""
    return driver.device_facts(current_device())
