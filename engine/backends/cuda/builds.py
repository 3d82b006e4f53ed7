"""Everything that `make kernels` compiles. Each wrapper names its own builds; this gathers them."""

from engine.backends.cuda import (
    attention_decode_tiles,
    attention_prefill_tiles,
    block_copy,
    embedding,
    gated_activation,
    linear_rows,
    norms,
    rope_kv_store,
    sampling,
    step_inputs,
)
from engine.backends.cuda.source import Build
from engine.backends.cuda.target import DeviceFacts


def all_builds(device: DeviceFacts) -> list[Build]:
    """Builds for one device, in the order of the report."""
    makers = (
        attention_decode_tiles,
        attention_prefill_tiles,
        rope_kv_store,
        norms,
        gated_activation,
        embedding,
        block_copy,
        sampling,
        step_inputs,
        linear_rows,
    )
    return [build for maker in makers for build in maker.builds(device)]
