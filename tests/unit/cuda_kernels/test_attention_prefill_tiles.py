"""The tiles of attention_prefill against the devices' limits and the constants in the sources."""

import pytest

from engine.backends.cuda.attention_prefill_tiles import (
    HEAD_DIMS,
    MAX_GROUP,
    builds,
    packed_heads,
    portable_tiling,
    sm90_tiling,
)
from engine.backends.cuda.target import TYPICAL_DEVICES

STATIC_SHARED_BYTES = 1024  # more than the kernels' barriers take
SMALLEST_AMPERE_BYTES = 99 * 1024  # a block's most on sm_86 and sm_89


@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_blocks_fit_their_devices(head_dim: int) -> None:
    for soft_cap in (False, True):
        tiling = sm90_tiling(head_dim, soft_cap)
        assert tiling.shared_bytes + STATIC_SHARED_BYTES <= TYPICAL_DEVICES["sm_90a"].shared_bytes_per_block
        assert tiling.threads == 128 + tiling.rows // 64 * 128
    assert portable_tiling(head_dim).shared_bytes + STATIC_SHARED_BYTES <= SMALLEST_AMPERE_BYTES


@pytest.mark.parametrize(
    ("group", "packed"), [(1, 1), (2, 2), (3, 1), (4, 4), (6, 2), (7, 1), (8, 8), (12, 4), (16, 16)]
)
def test_packs_the_largest_power_of_two_of_the_group(group: int, packed: int) -> None:
    assert packed_heads(4 * group, 4) == packed


@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_a_tile_holds_whole_tokens(head_dim: int) -> None:
    for group in range(1, MAX_GROUP + 1):
        for tiling in (sm90_tiling(head_dim, False), sm90_tiling(head_dim, True), portable_tiling(head_dim)):
            assert tiling.rows % packed_heads(group, 1) == 0


def test_only_hopper_builds_the_hopper_kernel() -> None:
    for arch, device in TYPICAL_DEVICES.items():
        names = {build.name for build in builds(device)}
        assert ("attention_prefill_sm90" in names) == (arch == "sm_90a")
        assert ("attention_prefill" in names) == (arch != "sm_90a")
