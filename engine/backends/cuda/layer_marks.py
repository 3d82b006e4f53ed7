"""Moments inside a step from which on the KV of its leading layers is written.

A step that tells of its layers writes its number behind some of them into memory of the host. Events would
be simpler, but a graph that is replayed records them anew while the step before is still waited for; the
number of a later step says the same of all steps before it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import torch

from engine.backends.cuda import loader
from engine.step import LayersWritten

# A step is waited for from its launch on; then its last layers are near.
_FIRST_POLL_S, _POLL_S = 200e-6, 50e-6
_NUMBERS = 1 << 31  # then they begin again


def marked_layers(num_layers: int) -> tuple[int, ...]:
    """After how many layers to say so: late, since copying takes half a layer's time, and in few pieces.

    The last piece is small: it is copied while the last layer attends and the token is drawn.
    """
    return tuple(sorted({n for n in (num_layers * 3 // 4, num_layers * 15 // 16, num_layers) if n}))


class LayerMarks:
    """What a runner's steps, which run one after the other, write behind their layers."""

    def __init__(self, num_layers: int) -> None:
        self._after = marked_layers(num_layers)
        # The device has the same address for it.
        self._notes = torch.zeros(len(self._after), dtype=torch.int32, pin_memory=torch.cuda.is_available())
        self._host = self._notes.numpy()
        self._number = 0
        self._mark = loader.load("step_inputs").kernel("step_mark")

    def begin(self) -> int:
        """The number of the next step that tells of its layers."""
        self._number = (self._number + 1) % _NUMBERS
        return self._number

    def stored(self, layer: int, rows: torch.Tensor) -> None:
        """Let the step write its number, if this layer is one of those; what stores its KV has been launched.

        Args:
            rows: ROW, as bytes; the first one has the number.
        """
        if layer + 1 in self._after:
            place = self._after.index(layer + 1)
            self._mark((1, 1, 1), (1, 1, 1), rows, self._notes[place : place + 1])

    def moments(self, number: int, is_over: Callable[[], bool]) -> tuple[LayersWritten, ...]:
        """The moments of a step under way.

        Args:
            number: what `begin` gave for it.
            is_over: whether the device is done with it; any thread may ask.
        """
        return tuple(
            LayersWritten(num_layers, partial(self._wait, place, number, is_over))
            for place, num_layers in enumerate(self._after)
        )

    def _wait(self, place: int, number: int, is_over: Callable[[], bool]) -> None:
        pause_s = _POLL_S if place else _FIRST_POLL_S
        while not self._has_come(place, number):
            if is_over() and not self._has_come(place, number):
                raise RuntimeError("a step is over and did not tell of its layers")
            time.sleep(pause_s)

    def _has_come(self, place: int, number: int) -> bool:
        """Whether the note is this number, or one after it."""
        return (int(self._host[place]) - number) % _NUMBERS < _NUMBERS // 2
