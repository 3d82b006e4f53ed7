"""What can go wrong between Python and a CUDA device.

KernelError (an EngineError)
├── CupyMissingError        cupy is not installed
├── DriverMissingError      no NVIDIA driver, or one too old for this CUDA
├── DeviceMissingError      a driver, but no device
├── DeviceTooOldError       compute capability below 8.0
├── UnknownKernelError      no such .cu file
├── CompilerMissingError    no cubin made ahead, and no NVRTC to make one
├── CompileError            NVRTC refused the source; carries its log
├── LaunchError             the driver refused a launch; carries its code
├── DeviceMemoryError       the driver gives no memory
├── ArenaFullError          the memory set aside for weights is too small
├── ProductsMissingError    no cuBLASLt that torch has loaded
├── ProductError            cuBLASLt refused a product; carries its status
└── UnsupportedShapeError   an operation was asked for what its kernel cannot do
"""

from engine.errors import EngineError


class KernelError(EngineError):
    """Base of this package's errors; a worker that meets one at its start says so and leaves."""


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


class LaunchError(KernelError):
    """The driver refused a launch."""

    def __init__(self, status: int) -> None:
        super().__init__(f"the CUDA driver refused to launch a kernel (error {status})")
        self.status = status


class DeviceMemoryError(KernelError):
    """The driver gives no memory."""

    def __init__(self, num_bytes: int, detail: str) -> None:
        super().__init__(f"no {num_bytes} bytes of device memory ({detail}); see kv_bytes and kv_fraction")


class ArenaFullError(KernelError):
    """The memory set aside for weights is too small."""

    def __init__(self, wanted: int, size: int) -> None:
        super().__init__(f"the arena of weights has {size} bytes, {wanted} are needed")


class ProductsMissingError(KernelError):
    """No cuBLASLt."""

    def __init__(self, detail: str) -> None:
        super().__init__(f"no usable cuBLASLt in this process ({detail}): install torch for CUDA")


class ProductError(KernelError):
    """cuBLASLt refused."""

    def __init__(self, function: str, status: int) -> None:
        super().__init__(f"{function} returned status {status}")
        self.status = status


class UnsupportedShapeError(KernelError):
    """An operation was asked for a size or type that its kernel does not take."""
