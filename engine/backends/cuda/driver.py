"""The one module that touches cupy: device facts, NVRTC and modules."""

import functools
import importlib
from pathlib import Path
from types import ModuleType
from typing import Protocol

import torch

from engine.backends.cuda.errors import (
    CompileError,
    CompilerMissingError,
    CupyMissingError,
    DeviceMemoryError,
    DeviceMissingError,
    DriverMissingError,
)
from engine.backends.cuda.source import Source
from engine.backends.cuda.target import DeviceFacts


class LoadedModule(Protocol):
    """What cupy gives for a cubin."""

    def get_function(self, name: str) -> "RawKernel":
        """The entry point of that name."""


class Function(Protocol):
    """The driver's handle (CUfunction)."""

    ptr: int


class RawKernel(Protocol):
    """What cupy gives for a kernel."""

    kernel: Function
    max_dynamic_shared_size_bytes: int


def current_stream() -> int:
    """Handle of torch's current stream on its current device, without an object around it."""
    handle: int = torch._C._cuda_getCurrentRawStream(torch._C._cuda_getDevice())
    return handle


def _cupy() -> ModuleType:
    try:
        return importlib.import_module("cupy")
    except ImportError as error:
        raise CupyMissingError from error


@functools.cache
def device_facts(device: int) -> DeviceFacts:
    """Read a device's facts.

    Raises:
        CupyMissingError, DriverMissingError, DeviceMissingError: each says what to do.
    """
    runtime = _cupy().cuda.runtime
    try:
        count = runtime.getDeviceCount()
    except runtime.CUDARuntimeError as error:
        if "NoDevice" in str(error):
            raise DeviceMissingError from error
        raise DriverMissingError(str(error)) from error
    if count == 0:
        raise DeviceMissingError
    facts = runtime.getDeviceProperties(device)
    return DeviceFacts(
        name=facts["name"].decode(),
        major=facts["major"],
        minor=facts["minor"],
        num_sms=facts["multiProcessorCount"],
        shared_bytes_per_block=facts["sharedMemPerBlockOptin"],
        shared_bytes_per_sm=facts["sharedMemPerMultiprocessor"],
        l2_bytes=facts["l2CacheSize"],
    )


def compile_cubin(source: Source, arch: str) -> tuple[bytes, str]:
    """Compile with NVRTC; needs no device.

    Returns:
        The cubin, and the log with ptxas's resource report.
    Raises:
        CompilerMissingError: NVRTC cannot be loaded.
        CompileError: the source does not compile; carries the log.
    """
    _cupy()
    from cupy.cuda import nvrtc

    try:
        nvrtc.getVersion()
    except (RuntimeError, OSError) as error:
        raise CompilerMissingError(source.name, arch) from error
    headers = source.headers()
    texts = tuple(text.encode() for text in headers.values())
    names = tuple(name.encode() for name in headers)
    program = nvrtc.createProgram(source.text(), f"{source.name}.cu", texts, names)
    try:
        nvrtc.compileProgram(program, source.options(arch))
        cubin = bytes(nvrtc.getCUBIN(program)) + b"\0"  # cupy drops the last byte, as if it were text
        return cubin, str(nvrtc.getProgramLog(program))
    except nvrtc.NVRTCError as error:
        raise CompileError(source.name, arch, str(nvrtc.getProgramLog(program))) from error
    finally:
        nvrtc.destroyProgram(program)


def load_module(cubin: Path) -> LoadedModule:
    """Load a cubin on torch's current device."""
    torch.cuda.current_stream()  # creates torch's context first, so both use the primary one
    module: LoadedModule = _cupy().RawModule(path=str(cubin))
    return module


def allocate(num_bytes: int) -> int:
    """Device memory for the rest of the process, straight from the driver; returns its address."""
    runtime = _cupy().cuda.runtime
    torch.cuda.current_stream()
    try:
        return int(runtime.malloc(num_bytes))
    except runtime.CUDARuntimeError as error:
        raise DeviceMemoryError(num_bytes, str(error)) from error
