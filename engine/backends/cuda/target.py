"""Which machine code a device runs. Pure: no driver, no cupy."""

from dataclasses import dataclass

from engine.backends.cuda.errors import DeviceTooOldError


@dataclass(frozen=True)
class DeviceFacts:
    """What kernels and tile choices need to know of a device."""

    name: str
    major: int
    minor: int
    num_sms: int
    shared_bytes_per_block: int
    shared_bytes_per_sm: int
    l2_bytes: int

    @property
    def arch(self) -> str:
        """NVRTC's -arch value, such as "sm_90a".

        Raises:
            DeviceTooOldError: compute capability below 8.0.
        """
        if self.major < 8:
            raise DeviceTooOldError(self.name, self.major, self.minor)
        # Binary code runs on later minors of its major, but for the arch-specific "a" targets.
        return "sm_80" if self.major == 8 else f"sm_{self.major}{self.minor}a"


# The data-centre device of each ahead-of-time arch: cubins made ahead are tiled for it.
TYPICAL_DEVICES = {
    "sm_80": DeviceFacts("NVIDIA A100", 8, 0, 108, 166_912, 167_936, 40 << 20),
    "sm_90a": DeviceFacts("NVIDIA H100", 9, 0, 132, 232_448, 233_472, 50 << 20),
    "sm_100a": DeviceFacts("NVIDIA B200", 10, 0, 148, 232_448, 233_472, 126 << 20),
}
