"""Everything that `make kernels` compiles. Each wrapper names its own builds; this gathers them."""

from engine.backends.cuda import attention_decode_tiles
from engine.backends.cuda.source import Build
from engine.backends.cuda.target import DeviceFacts


def all_builds(device: DeviceFacts) -> list[Build]:
    """Builds for one device, in the order of the report."""
    return [*attention_decode_tiles.builds(device)]
