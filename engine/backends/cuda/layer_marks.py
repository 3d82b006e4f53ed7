"""Moments inside a step from which on the KV of its leading layers is written."""

from __future__ import annotations

import torch

from engine.step import LayersWritten


def marked_layers(num_layers: int) -> tuple[int, ...]:
    """After how many layers to say so: late, since copying takes half a layer's time, and in few pieces.

    The last piece is small: it is copied while the last layer attends and the token is drawn.
    """
    return tuple(sorted({n for n in (num_layers * 3 // 4, num_layers * 15 // 16, num_layers) if n}))


class LayerMarks:
    """Events that one step records between its layers; a graph must not capture them.

    Attributes:
        written: those recorded so far.
    """

    def __init__(self, num_layers: int) -> None:
        self._after = marked_layers(num_layers)
        self.written: list[LayersWritten] = []

    def stored(self, layer: int) -> None:
        """Note that the current stream has got all that stores the KV of a layer and of those before it."""
        if layer + 1 in self._after:
            # Who waits for the first does so for most of a step, and is not to spin; for the last
            # it spins a layer or two, since to be woken by the driver takes 0.2 ms.
            is_last = layer + 1 == self._after[-1]
            event = torch.cuda.Event(blocking=not is_last)  # type: ignore[no-untyped-call]
            event.record()
            self.written.append(LayersWritten(layer + 1, event.synchronize))
