"""Packed launches hand the driver what launches one by one hand it, byte for byte."""

from __future__ import annotations

import ctypes
import struct
import threading
from collections.abc import Callable

import numpy as np
import pytest
import torch

from engine.backends.cuda import overlap
from engine.backends.cuda.errors import LaunchError
from engine.backends.cuda.packed import Argument, PackedLaunches

ENTRY = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p)
FUNCTION, STREAM = 0x7F00_1234_5678, 0x5500_0000_0010
MAP = np.arange(128, dtype=np.uint8).view("V128")
PARAMS = np.zeros(1, dtype=[("pointer", np.uint64), ("scale", np.float32), ("count", np.int32)])
PARAMS[0] = (0x7FFF_0000_0000, 0.125, -3)
SIZES = {np.int32: 4, np.float32: 4, np.int64: 8, np.uint64: 8}


def size_of(arg: Argument) -> int:
    return arg.nbytes if isinstance(arg, np.ndarray) else SIZES.get(type(arg), 8)


class Driver:
    """Stands where cuLaunchKernelEx does, behind a C function: keeps what each launch was given."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.status = 0
        self.launches: list[tuple[object, ...]] = []
        self.during: Callable[[], None] = lambda: None
        self.entry = ENTRY(self._launch)

    def _launch(self, config: int, function: int, arguments: int, extra: int | None) -> int:
        self.during()
        got = overlap._Config.from_address(config)
        pointers = (ctypes.c_void_p * len(self.sizes)).from_address(arguments)
        values = tuple(
            ctypes.string_at(at, size)
            for at, size in zip(pointers, self.sizes, strict=True)
            if at is not None
        )
        attribute = got.attributes[0].id if got.num_attributes else None
        self.launches.append(
            (
                tuple(got.grid),
                tuple(got.block),
                got.shared_bytes,
                got.stream,
                attribute,
                function,
                extra,
                values,
            )
        )
        return self.status


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Driver:
    fake = Driver()
    monkeypatch.setattr(overlap, "launcher", lambda: fake.entry)
    return fake


def arguments(seed: int) -> list[Argument]:
    return [
        torch.zeros(3), None, np.int32(-seed), np.float32(seed / 3), MAP, np.int64(-(1 << 40) - seed),
        np.uint64((1 << 63) + seed), PARAMS, np.int32(7),
    ]  # fmt: skip


def test_the_driver_gets_the_same(driver: Driver) -> None:
    packed = PackedLaunches(FUNCTION)
    for seed in range(1, 4):
        args = arguments(seed)
        driver.sizes = [size_of(arg) for arg in args]
        plain = [
            arg.data_ptr() if isinstance(arg, torch.Tensor) else 0 if arg is None else arg for arg in args
        ]
        overlap.launch(FUNCTION, (seed, 2, 3), (64, 1, 1), plain, 1024 * seed, STREAM)
        packed((seed, 2, 3), (64, 1, 1), args, 1024 * seed, STREAM, True)
        one_by_one, together = driver.launches[-2:]
        assert together == one_by_one
        assert len(together[-1]) == len(args)
    assert len(packed._free) == 1, "a frame is used again"


def test_only_a_launch_that_may_overlap_says_so(driver: Driver) -> None:
    packed = PackedLaunches(FUNCTION)
    for overlaps in (False, True, False):
        packed((1, 1, 1), (32, 1, 1), [], 0, STREAM, overlaps)
    assert [launch[4] for launch in driver.launches] == [None, overlap._SERIALIZATION, None]


def test_a_launch_inside_of_another_has_a_frame_of_its_own(driver: Driver) -> None:
    """As when two threads launch one kernel: the first is in the driver when the second packs."""
    packed = PackedLaunches(FUNCTION)
    driver.sizes = [4]

    def other() -> None:
        driver.during = lambda: None
        thread = threading.Thread(
            target=packed, args=((2, 1, 1), (32, 1, 1), [np.int32(22)], 0, STREAM, False)
        )
        thread.start()
        thread.join()

    driver.during = other
    packed((1, 1, 1), (32, 1, 1), [np.int32(11)], 0, STREAM, False)
    seen = [(launch[0], struct.unpack("i", launch[-1][0])[0]) for launch in driver.launches]
    assert seen == [((2, 1, 1), 22), ((1, 1, 1), 11)]
    assert len(packed._free) == 2


def test_numbers_of_no_width_are_refused(driver: Driver) -> None:
    for number in (3, 0.5):
        with pytest.raises(TypeError, match=r"np\.int32"):
            PackedLaunches(FUNCTION)((1, 1, 1), (32, 1, 1), [number], 0, STREAM, False)  # type: ignore[list-item]
    assert not driver.launches


def test_another_kind_of_argument_than_the_first_time_is_refused(driver: Driver) -> None:
    packed = PackedLaunches(FUNCTION)
    driver.sizes = [4]
    packed((1, 1, 1), (32, 1, 1), [np.int32(1)], 0, STREAM, False)
    for other in (np.float32(1.0), np.int64(1 << 40), MAP):
        with pytest.raises(struct.error):
            packed((1, 1, 1), (32, 1, 1), [other], 0, STREAM, False)
    packed((1, 1, 1), (32, 1, 1), [np.int32(2)], 0, STREAM, False)
    assert len(driver.launches) == 2


def test_a_refusal_of_the_driver_is_an_error(driver: Driver) -> None:
    driver.status = 701
    with pytest.raises(LaunchError, match="701"):
        PackedLaunches(FUNCTION)((1, 1, 1), (32, 1, 1), [], 0, STREAM, False)
