"""What can go wrong between Python and a CUDA device.

KernelError
├── CupyMissingError        cupy is not installed
├── DriverMissingError      no NVIDIA driver, or one too old for this CUDA
├── DeviceMissingError      a driver, but no device
├── DeviceTooOldError       compute capability below 8.0
├── UnknownKernelError      no such .cu file
├── CompilerMissingError    no cubin made ahead, and no NVRTC to make one
├── CompileError            NVRTC refused the source; carries its log
└── UnsupportedShapeError   an operation was asked for what its kernel cannot do
"""


class KernelError(Exception):
    """Base of this package's errors."""


class CupyMissingError(KernelError):
    """The optional dependency is absent."""

    def __init__(self) -> None:
        super().__init__("the cuda backend needs cupy: install the extra with `pip install 'baton[cuda]'`")


class DriverMissingError(KernelError):
    """No usable NVIDIA driver."""

    def __init__(self, detail: str) -> None:
        super().__init__(f"no usable NVIDIA driver here ({detail}); install one, or use the cpu backend")


class DeviceMissingError(KernelError):
    """A driver without a device."""

    def __init__(self) -> None:
        super().__init__("the NVIDIA driver sees no GPU; check CUDA_VISIBLE_DEVICES, or use the cpu backend")


class DeviceTooOldError(KernelError):
    """The device lacks bf16 tensor cores and asynchronous copies."""

    def __init__(self, name: str, major: int, minor: int) -> None:
        super().__init__(f"{name} has compute capability {major}.{minor}; the cuda backend needs 8.0")


class UnknownKernelError(KernelError):
    """A kernel file that does not exist."""

    def __init__(self, name: str, folder: str) -> None:
        super().__init__(f"no kernel source {name}.cu in {folder}")


class CompilerMissingError(KernelError):
    """Nothing made ahead fits, and NVRTC is not there to compile."""

    def __init__(self, name: str, arch: str) -> None:
        super().__init__(
            f"no cubin of {name} for {arch} was made ahead and NVRTC is not installed: "
            "run `make kernels`, or `pip install nvidia-cuda-nvrtc`"
        )


class CompileError(KernelError):
    """NVRTC's refusal, with its log."""

    def __init__(self, name: str, arch: str, log: str) -> None:
        super().__init__(f"{name}.cu does not compile for {arch}:\n{log.strip()}")
        self.log = log


class UnsupportedShapeError(KernelError):
    """An operation was asked for a size or type that its kernel does not take."""
