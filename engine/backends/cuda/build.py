"""`make kernels`: compile every kernel ahead of time and report what it uses.

    python -m engine.backends.cuda.build [--arch sm_90a] [--out build/kernels] [name ...]

Prints registers, shared memory and spills of each kernel; exits 1 on a spill in a hot one.
Needs NVRTC, no GPU.
"""

import argparse
import re
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from engine.backends.cuda import builds, driver, loader
from engine.backends.cuda.source import Build, Source
from engine.backends.cuda.target import TYPICAL_DEVICES

_KERNEL = re.compile(
    r"Compiling entry function '(?P<name>\w+)'.*?(?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes "
    r"spill loads.*?Used (?P<registers>\d+) registers(?P<rest>[^\n]*)",
    re.DOTALL,
)


@dataclass(frozen=True)
class Usage:
    """What ptxas reports of one kernel."""

    kernel: str
    registers: int
    static_shared_bytes: int
    spill_bytes: int


def parse_usage(log: str) -> list[Usage]:
    """Read ptxas's verbose log."""
    found = []
    for match in _KERNEL.finditer(log):
        shared = re.search(r"(\d+) bytes smem", match["rest"])
        spills = int(match["stores"]) + int(match["loads"])
        found.append(Usage(match["name"], int(match["registers"]), int(shared[1]) if shared else 0, spills))
    return found


def compile_build(arch: str, build: Build, folder: Path) -> list[Usage]:
    """Compile one build into a folder, under the name the loader looks for."""
    source = Source.of(build.name, build.defines)
    cubin, log = driver.compile_cubin(source, arch)
    loader.store(cubin, folder / source.cubin_name(arch))
    return parse_usage(log)


def report(arch: str, build: Build, usages: list[Usage]) -> Iterator[str]:
    """Lines of the table, one a kernel."""
    defines = " ".join(f"{macro}={value}" for macro, value in sorted(build.defines.items()))
    for usage in usages:
        mark = "" if not usage.spill_bytes else "  SPILLS" if build.hot else "  spills (cold)"
        yield (
            f"{arch:8} {usage.kernel:28} {usage.registers:4} regs {usage.static_shared_bytes:6} B shared "
            f"{usage.spill_bytes:5} B spilled{mark}  {defines}"
        )


def main() -> int:
    """Run the command; the result is the exit status."""
    parser = argparse.ArgumentParser(description="Compile the CUDA kernels ahead of time.")
    parser.add_argument("names", nargs="*", help="kernel files; all if none is given")
    parser.add_argument("--arch", action="append", choices=list(TYPICAL_DEVICES), help="all if none is given")
    parser.add_argument("--out", type=Path, default=loader.AHEAD_DIR)
    options = parser.parse_args()
    work = [
        (arch, build)
        for arch in options.arch or TYPICAL_DEVICES
        for build in builds.all_builds(TYPICAL_DEVICES[arch])
        if not options.names or build.name in options.names
    ]
    spilled = 0
    with ProcessPoolExecutor() as pool:
        pending = [
            (arch, build, pool.submit(compile_build, arch, build, options.out)) for arch, build in work
        ]
        for arch, build, result in pending:
            usages = result.result()
            spilled += build.hot and any(usage.spill_bytes for usage in usages)
            print("\n".join(report(arch, build, usages)), flush=True)
    print(f"{len(work)} modules in {options.out}; {spilled} hot ones spill registers")
    return 1 if spilled else 0


if __name__ == "__main__":
    sys.exit(main())
