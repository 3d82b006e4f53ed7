"""The pure half of the CUDA loader: keys, headers, targets, error sentences. No device, no cupy."""

from pathlib import Path

import pytest
import torch

from engine.backends.cuda import dtypes, errors, loader, target
from engine.backends.cuda.source import Source


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "add.cu").write_text('#include "outer.cuh"\n#include <system.h>\nint x;\n')
    (tmp_path / "outer.cuh").write_text('#include "inner.cuh"\n')
    (tmp_path / "inner.cuh").write_text("#pragma once\n")
    return tmp_path


def test_headers_are_found_through_headers(folder: Path) -> None:
    assert list(Source.of("add", {}, folder).headers()) == ["inner.cuh", "outer.cuh"]


def test_key_changes_with_source_header_defines_and_arch(folder: Path) -> None:
    def key(defines: dict[str, int | str], arch: str = "sm_90a") -> str:
        return Source.of("add", defines, folder).cubin_name(arch)

    first = key({"A": 1, "B": 2})
    assert first == key({"B": 2, "A": 1})
    assert first.startswith("add-sm_90a-")
    names = {first, key({"A": 2, "B": 2}), key({"A": 1}), key({"A": 1, "B": 2}, "sm_80")}
    (folder / "inner.cuh").write_text("#pragma once\nint y;\n")
    names.add(key({"A": 1, "B": 2}))
    (folder / "add.cu").write_text("int z;\n")
    names.add(key({"A": 1, "B": 2}))
    assert len(names) == 6


def test_unknown_kernel_names_the_file(folder: Path) -> None:
    with pytest.raises(errors.UnknownKernelError, match=r"sub\.cu"):
        Source.of("sub", {}, folder)


def _facts(major: int, minor: int) -> target.DeviceFacts:
    return target.DeviceFacts("GPU", major, minor, 100, 232448, 233472, 1 << 25)


@pytest.mark.parametrize(
    ("capability", "arch"),
    [((8, 0), "sm_80"), ((8, 9), "sm_80"), ((9, 0), "sm_90a"), ((10, 0), "sm_100a"), ((12, 0), "sm_120a")],
)
def test_arch_of_a_device(capability: tuple[int, int], arch: str) -> None:
    assert _facts(*capability).arch == arch


def test_old_device_is_refused_with_its_capability() -> None:
    with pytest.raises(errors.DeviceTooOldError, match=r"7\.5.*8\.0"):
        _ = _facts(7, 5).arch


def test_dtype_codes() -> None:
    assert (dtypes.dtype_code(torch.bfloat16), dtypes.dtype_code(torch.float16)) == (0, 1)
    with pytest.raises(errors.UnsupportedShapeError, match="float32"):
        dtypes.dtype_code(torch.float32)


def test_store_then_find_does_not_compile(folder: Path) -> None:
    source = Source.of("add", {}, folder)
    ahead, cache = folder / "ahead", folder / "cache"
    loader.store(b"cubin", cache / source.cubin_name("sm_80"))
    assert loader.find_or_compile(source, "sm_80", (ahead, cache)).read_bytes() == b"cubin"
    loader.store(b"ahead", ahead / source.cubin_name("sm_80"))
    assert loader.find_or_compile(source, "sm_80", (ahead, cache)).read_bytes() == b"ahead"
    assert sorted(path.name for path in cache.iterdir()) == [source.cubin_name("sm_80")]


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_without_a_gpu_loading_is_one_clear_sentence() -> None:
    expected = (errors.CupyMissingError, errors.DriverMissingError, errors.DeviceMissingError)
    with pytest.raises(expected) as caught:
        loader.load("rms_norm")
    assert "cpu backend" in str(caught.value) or "pip install" in str(caught.value)


def test_compile_error_carries_the_log(folder: Path) -> None:
    pytest.importorskip("cupy")
    (folder / "bad.cu").write_text('extern "C" __global__ void k() { undeclared = 1; }\n')
    with pytest.raises((errors.CompileError, errors.CompilerMissingError), match=r"undeclared|NVRTC"):
        loader.find_or_compile(Source.of("bad", {}, folder), "sm_80", (folder,))
