"""Splits off what a model thinks aloud, between <think> and </think>, as the text comes."""

from __future__ import annotations

import enum

from services.gateway.text.stop import num_held

OPEN = "<think>"
CLOSE = "</think>"


def begins_thinking(prompt: str) -> bool:
    """Tell whether an answer to this prompt begins inside of the marks."""
    return prompt.rstrip().endswith(OPEN)


class _Place(enum.Enum):
    START = "start"
    INSIDE = "inside"
    AFTER = "after"


class ReasoningSplitter:
    """The reasoning of one answer, which only its beginning may hold.

    Newlines around the marks belong to neither part.

    Args:
        is_open: the prompt ends with <think>, so the answer begins inside.
    """

    def __init__(self, *, is_open: bool) -> None:
        self._place = _Place.INSIDE if is_open else _Place.START
        self._held = ""
        self._at_edge = is_open

    def push(self, text: str) -> tuple[str, str]:
        """Return the reasoning and the text that are sure by now."""
        self._held += text
        reasoning = ""
        if self._place is _Place.START:
            self._begin()
        if self._place is _Place.INSIDE:
            reasoning = self._think()
        return (reasoning, self._take(len(self._held))) if self._place is _Place.AFTER else (reasoning, "")

    def flush(self) -> tuple[str, str]:
        """Return what was held back, at the end of the answer."""
        held = self._take(len(self._held))
        return (held, "") if self._place is _Place.INSIDE else ("", held)

    def _begin(self) -> None:
        """Leave START once it is clear whether the answer opens with the mark."""
        begun = self._held.lstrip()
        if begun.startswith(OPEN):
            self._held = begun[len(OPEN) :]
            self._place, self._at_edge = _Place.INSIDE, True
        elif not OPEN.startswith(begun):
            self._place = _Place.AFTER

    def _think(self) -> str:
        at = self._held.find(CLOSE)
        if at < 0:
            return self._take(len(self._held) - num_held(self._held, (CLOSE,)))
        reasoning = self._take(at)
        self._held = self._held[len(CLOSE) :]
        self._place, self._at_edge = _Place.AFTER, True
        return reasoning

    def _take(self, count: int) -> str:
        """Remove `count` characters from what is held; at an edge without leading newlines."""
        taken, self._held = self._held[:count], self._held[count:]
        if self._at_edge:
            taken = taken.lstrip("\n")
            self._at_edge = not taken
        return taken
