"""Tile choices and the report of `make kernels`: pure, no device."""

import itertools

import pytest

from engine.backends.cuda import build, errors
from engine.backends.cuda.attention_decode_tiles import (
    HEAD_DIMS,
    MAX_SPLITS,
    DecodeShape,
    builds,
    choose_tiles,
    split_size,
)
from engine.backends.cuda.builds import all_builds
from engine.backends.cuda.source import Build, Source
from engine.backends.cuda.target import TYPICAL_DEVICES, DeviceFacts


@pytest.mark.parametrize("arch", list(TYPICAL_DEVICES))
def test_every_decode_shape_fits_the_data_centre_devices(arch: str) -> None:
    device = TYPICAL_DEVICES[arch]
    for head_dim, group, queries in itertools.product(HEAD_DIMS, range(1, 17), range(1, 9)):
        shape = DecodeShape(head_dim, group, queries, 64, 0)
        tiles = choose_tiles(shape, device)
        assert shape.rows <= shape.padded_rows
        assert tiles.stages >= 2
        assert tiles.shared_bytes <= device.shared_bytes_per_block
        assert (tiles.shared_bytes + 1024) * tiles.blocks <= device.shared_bytes_per_sm
        assert tiles.tma == (device.major >= 9)


def test_a_small_device_takes_smaller_rings_or_refuses_by_name() -> None:
    small = DeviceFacts("NVIDIA L4", 8, 9, 58, 101_376, 102_400, 48 << 20)
    assert choose_tiles(DecodeShape(128, 4, 1, 64, 0), small).shared_bytes <= small.shared_bytes_per_block
    with pytest.raises(errors.UnsupportedShapeError, match="NVIDIA L4"):
        choose_tiles(DecodeShape(256, 16, 8, 64, 0), small)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((80, 4, 1, 64, 0), "head_dim 80"),
        ((128, 17, 1, 64, 0), "17"),
        ((128, 4, 9, 64, 0), "queries 9"),
        ((128, 4, 1, 48, 0), "block_size 48"),
    ],
)
def test_shapes_it_does_not_take(shape: tuple[int, int, int, int, int], message: str) -> None:
    with pytest.raises(errors.UnsupportedShapeError, match=message):
        DecodeShape(*shape)


def test_split_size_depends_on_the_request_alone_and_bounds_the_splits() -> None:
    assert (split_size(128, 1), split_size(64, 1)) == (512, 1024)
    assert (split_size(128, 32768), split_size(128, 32769)) == (512, 1024)
    for length in (1, 4096, 131072, 1_000_000):
        assert -(-length // split_size(128, length)) <= MAX_SPLITS


def test_every_build_names_a_source_and_is_listed_once() -> None:
    device = TYPICAL_DEVICES["sm_90a"]
    everything = all_builds(device)
    names = [Source.of(one.name, one.defines).cubin_name(device.arch) for one in everything]
    assert len(set(names)) == len(names)
    assert {one.name for one in everything} >= {one.name for one in builds(device)}


LOG = """ptxas info    : Compiling entry function 'fast' for 'sm_90a'
ptxas info    : Function properties for fast
ptxas         .     0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 40 registers, used 1 barriers, 512 bytes smem
ptxas info    : Compiling entry function 'slow' for 'sm_90a'
ptxas info    : Function properties for slow
ptxas         .     16 bytes stack frame, 12 bytes spill stores, 8 bytes spill loads
ptxas info    : Used 255 registers
"""


def test_usage_is_read_from_the_compiler_log() -> None:
    fast, slow = build.parse_usage(LOG)
    assert (fast.kernel, fast.registers, fast.static_shared_bytes, fast.spill_bytes) == ("fast", 40, 512, 0)
    assert (slow.kernel, slow.registers, slow.static_shared_bytes, slow.spill_bytes) == ("slow", 255, 0, 20)
    lines = list(build.report("sm_90a", Build("x", {"D": 1}), [fast, slow]))
    assert "SPILLS" in lines[1]
    assert "SPILLS" not in lines[0]
