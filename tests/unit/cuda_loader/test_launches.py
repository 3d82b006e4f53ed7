"""Launches hand the driver what cuLaunchKernelEx is declared to take, byte for byte."""

from __future__ import annotations

import ctypes
import struct
import threading
from collections.abc import Callable

import numpy as np
import pytest
import torch

from engine.backends.cuda import launches
from engine.backends.cuda.errors import LaunchError
from engine.backends.cuda.launches import Argument, Launches

ENTRY = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p)
FUNCTION, STREAM = 0x7F00_1234_5678, 0x5500_0000_0010
MAP = np.arange(128, dtype=np.uint8).view("V128")
PARAMS = np.zeros(1, dtype=[("pointer", np.uint64), ("scale", np.float32), ("count", np.int32)])
PARAMS[0] = (0x7FFF_0000_0000, 0.125, -3)
SERIALIZED = (6, 1)  # the attribute of a launch that may overlap, and its value


class Attribute(ctypes.Structure):
    """CUlaunchAttribute; its value is a union of 64 bytes."""

    _fields_ = (
        ("id", ctypes.c_int),
        ("padding", ctypes.c_char * 4),
        ("value", ctypes.c_int),
        ("unused", ctypes.c_char * 60),
    )


class Config(ctypes.Structure):
    """CUlaunchConfig."""

    _fields_ = (
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("shared_bytes", ctypes.c_uint),
        ("stream", ctypes.c_void_p),
        ("attributes", ctypes.POINTER(Attribute)),
        ("num_attributes", ctypes.c_uint),
    )


def bytes_of(arg: Argument) -> bytes:
    """As the kernel's parameter lies in memory."""
    if isinstance(arg, torch.Tensor):
        return struct.pack("P", arg.data_ptr())
    return struct.pack("P", 0) if arg is None else arg.tobytes()


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
        got = Config.from_address(config)
        pointers = (ctypes.c_void_p * len(self.sizes)).from_address(arguments)
        values = tuple(
            ctypes.string_at(at, size)
            for at, size in zip(pointers, self.sizes, strict=True)
            if at is not None
        )
        attribute = (got.attributes[0].id, got.attributes[0].value) if got.num_attributes else None
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
    monkeypatch.setattr(launches, "launcher", lambda: fake.entry)
    return fake


def arguments(seed: int) -> list[Argument]:
    return [
        torch.zeros(3), None, np.int32(-seed), np.float32(seed / 3), MAP, np.int64(-(1 << 40) - seed),
        np.uint64((1 << 63) + seed), PARAMS, np.int32(7),
    ]  # fmt: skip


def test_the_driver_gets_configuration_and_arguments(driver: Driver) -> None:
    launch = Launches(FUNCTION)
    for seed in range(1, 4):
        args = arguments(seed)
        driver.sizes = [len(bytes_of(arg)) for arg in args]
        launch((seed, 2, 3), (64, 1, 1), args, 1024 * seed, STREAM, True)
        wanted = tuple(map(bytes_of, args))
        given = ((seed, 2, 3), (64, 1, 1), 1024 * seed, STREAM, SERIALIZED, FUNCTION, None, wanted)
        assert driver.launches[-1] == given
    assert len(launch._free) == 1, "a frame is used again"


def test_only_a_launch_that_may_overlap_says_so(driver: Driver) -> None:
    launch = Launches(FUNCTION)
    for overlaps in (False, True, False):
        launch((1, 1, 1), (32, 1, 1), [], 0, STREAM, overlaps)
    assert [seen[4] for seen in driver.launches] == [None, SERIALIZED, None]


def test_a_launch_inside_of_another_has_a_frame_of_its_own(driver: Driver) -> None:
    """As when two threads launch one kernel: the first is in the driver when the second packs."""
    launch = Launches(FUNCTION)
    driver.sizes = [4]

    def other() -> None:
        driver.during = lambda: None
        thread = threading.Thread(
            target=launch, args=((2, 1, 1), (32, 1, 1), [np.int32(22)], 0, STREAM, False)
        )
        thread.start()
        thread.join()

    driver.during = other
    launch((1, 1, 1), (32, 1, 1), [np.int32(11)], 0, STREAM, False)
    seen = [(one[0], struct.unpack("i", one[-1][0])[0]) for one in driver.launches]
    assert seen == [((2, 1, 1), 22), ((1, 1, 1), 11)]
    assert len(launch._free) == 2


def test_numbers_of_no_width_are_refused(driver: Driver) -> None:
    for number in (3, 0.5):
        with pytest.raises(TypeError, match=r"np\.int32"):
            Launches(FUNCTION)((1, 1, 1), (32, 1, 1), [number], 0, STREAM, False)  # type: ignore[list-item]
    assert not driver.launches


def test_another_kind_of_argument_than_the_first_time_is_refused(driver: Driver) -> None:
    launch = Launches(FUNCTION)
    driver.sizes = [4]
    launch((1, 1, 1), (32, 1, 1), [np.int32(1)], 0, STREAM, False)
    for other in (np.float32(1.0), np.int64(1 << 40), MAP):
        with pytest.raises(struct.error):
            launch((1, 1, 1), (32, 1, 1), [other], 0, STREAM, False)
    launch((1, 1, 1), (32, 1, 1), [np.int32(2)], 0, STREAM, False)
    assert len(driver.launches) == 2


def test_a_refusal_of_the_driver_is_an_error(driver: Driver) -> None:
    driver.status = 701
    with pytest.raises(LaunchError, match="701"):
        Launches(FUNCTION)((1, 1, 1), (32, 1, 1), [], 0, STREAM, False)
