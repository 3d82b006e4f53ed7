"""Stop strings: text is held back exactly as long as it may be the start of one."""

from __future__ import annotations

from collections.abc import Sequence


class StopStrings:
    """Looks for stop strings in a text that comes in pieces.

    The one that is complete first wins; of several that end at the same character,
    the longest. So the result does not depend on how the text was cut into pieces.

    Attributes:
        matched: the stop string that was found; empty: none yet.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.matched = ""

    def push(self, text: str) -> str:
        """Return the text that is safe to show: all before a match, or all that cannot begin one."""
        if not self._stops or not text:
            return text
        text = self._held + text
        found = [(at + len(stop), at, stop) for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            _, start, self.matched = min(found)
            self._held = ""
            return text[:start]
        safe = len(text) - num_held(text, self._stops)
        self._held = text[safe:]
        return text[:safe]

    def flush(self) -> str:
        """Return what was held back, at the end of the text."""
        held, self._held = self._held, ""
        return held


def num_held(text: str, markers: Sequence[str]) -> int:
    """Return the length of the longest end of the text that begins a marker but is not all of it."""
    longest = min(len(text), max(map(len, markers)) - 1)
    for length in range(longest, 0, -1):
        end = text[-length:]
        if any(marker.startswith(end) for marker in markers):
            return length
    return 0
