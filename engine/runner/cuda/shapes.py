"""Sizes of a step, and the few sizes that steps are padded to so that a CUDA graph serves many of them."""

from __future__ import annotations

import bisect
from dataclasses import dataclass, replace

_MORE_WANTED = (0, 16, 64, 128)  # rows of logits in a step with chunks; the most rows of a step come last


@dataclass(frozen=True, slots=True)
class StepShape:
    """How much a step holds, padding included.

    Attributes:
        num_rows: requests.
        num_decodes: leading rows, of one token, that attention_decode serves.
        num_tokens: T.
        num_wanted: tokens whose logits are wanted.
        has_chunks: there are tokens that attention_prefill serves. In a padded step they may be among the
            first num_decodes: attention_prefill writes after attention_decode.
        tells_layers: it notes which layers are done.
    """

    num_rows: int
    num_decodes: int
    num_tokens: int
    num_wanted: int
    has_chunks: bool
    tells_layers: bool = False

    def serves(self, other: StepShape) -> bool:
        """Whether a step of another shape can run as one of this one."""
        return (
            (self.has_chunks, self.tells_layers) == (other.has_chunks, other.tells_layers)
            and self.num_rows >= other.num_rows
            and self.num_decodes >= other.num_decodes
            and self.num_tokens >= other.num_tokens
            and self.num_wanted >= other.num_wanted
        )


class ShapeLadder:
    """The shapes of graphs.

    Steps without chunks have one size, of rows, tokens and logits. With chunks, tokens and logits have a size
    each, and attention_decode serves all the rows that there can be, or none.
    """

    def __init__(self, max_rows: int, max_tokens: int) -> None:
        """Most rows and most tokens of a step."""
        self._max_rows = max_rows
        self._decodes = decode_sizes(max_rows)
        self._tokens = chunk_sizes(max_tokens)
        self._wanted = (*(size for size in _MORE_WANTED if size < max_rows), max_rows)

    def padded(self, shape: StepShape) -> StepShape | None:
        """The smallest shape that holds a step; None: there is none."""
        if not shape.has_chunks:
            assert not shape.tells_layers, "a prompt's end of many tokens is a chunk"
            return _decode_shape(_at_least(self._decodes, shape.num_rows))
        wanted = _at_least(self._wanted, shape.num_wanted)
        # One token more than logits, so that those are always a selection.
        least = max(shape.num_tokens, wanted + 1)
        if least > self._tokens[-1]:
            return None
        padded = self._chunk_shape(_at_least(self._tokens, least), wanted, shape.num_decodes > 0)
        return replace(padded, tells_layers=shape.tells_layers)

    @property
    def first(self) -> list[StepShape]:
        """Shapes to capture before any request comes: steps of decode alone, the largest of all before them.

        What the largest needs is then memory that all others share.
        """
        shapes = [_decode_shape(size) for size in reversed(self._decodes)]
        if self._tokens[-1] > self._max_rows:
            shapes.insert(0, self._chunk_shape(self._tokens[-1], self._max_rows, True))
        return shapes

    @property
    def soon(self) -> list[StepShape]:
        """Shapes to capture while nothing runs: of long prompts, and of prompts beside many that decode."""
        sizes, most = [size for size in self._tokens if size > self._max_rows], self._tokens[-1]
        long = [
            self._chunk_shape(most, wanted, decodes)
            for wanted in self._wanted[:2]
            for decodes in (True, False)
        ]
        crowded = [self._chunk_shape(size, self._max_rows, True) for size in sizes]
        return [shape for shape in long if shape.num_wanted < most] + crowded

    def _chunk_shape(self, tokens: int, wanted: int, decodes: bool) -> StepShape:
        # One row more than requests: the tokens that fill up are its.
        num_decodes = min(self._max_rows, tokens) if decodes else 0
        return StepShape(self._max_rows + 1, num_decodes, tokens, wanted, True)


def decode_sizes(max_rows: int) -> tuple[int, ...]:
    """Batch sizes, growing: 1, 2, 4, then by eights, from 64 on by sixteens; the last is max_rows."""
    return _up_to(max_rows, (1, 2, 4, *range(8, 64, 8), *range(64, max_rows, 16)))


def chunk_sizes(max_tokens: int) -> tuple[int, ...]:
    """Tokens of steps with chunks, growing: 16, 32, then by 32, from 512 on by 64, from 1024 on by 128."""
    return _up_to(max_tokens, (16, *range(32, 512, 32), *range(512, 1024, 64), *range(1024, max_tokens, 128)))


def _up_to(most: int, sizes: tuple[int, ...]) -> tuple[int, ...]:
    return (*(size for size in sizes if size < most), most)


def _at_least(sizes: tuple[int, ...], count: int) -> int:
    return sizes[bisect.bisect_left(sizes, count)]


def _decode_shape(size: int) -> StepShape:
    return StepShape(size, size, size, size, False)
