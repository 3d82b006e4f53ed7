"""One plot as inline SVG: a frame with axes, and what is drawn in it. Colours are the page's (style.py)."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from loadtest.report.scale import Scale, linear, logarithmic, number

WIDTH, HEIGHT = 560, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 14, 12, 44

Points = Sequence[tuple[float, float]]


class Plot:
    """A plot that is filled step by step; later parts lie on top.

    Args:
        title: above the plot.
        x_name, y_name: of the axes, units included.
        x_high, y_high: largest values; an axis begins at 0.
        x_low, y_low: smallest values of logarithmic axes; None: linear.
    """

    def __init__(
        self,
        title: str,
        x_name: str,
        y_name: str,
        *,
        x_high: float,
        y_high: float,
        x_low: float | None = None,
        y_low: float | None = None,
        note: str = "",
    ) -> None:
        left, right, top, bottom = _LEFT, WIDTH - _RIGHT, _TOP, HEIGHT - _BOTTOM
        self._title, self._note = title, note
        self.x = linear(x_high, left, right) if x_low is None else logarithmic(x_low, x_high, left, right)
        self.y = linear(y_high, bottom, top) if y_low is None else logarithmic(y_low, y_high, bottom, top)
        self._parts: list[str] = [_grid(self.x, self.y, x_name, y_name)]
        self._legend: list[tuple[str, str]] = []
        self._alt = f"{title}: {y_name} against {x_name}"

    def line(self, points: Points, colour: str, name: str = "", *, dashed: bool = False) -> None:
        """Draw a line through points, with a mark and a tooltip at each if they are few."""
        if not points:
            return
        path = " ".join(f"{self.x(x):.1f},{self.y(y):.1f}" for x, y in points)
        dash = ' stroke-dasharray="5 4"' if dashed else ""
        self._parts.append(f'<polyline class="line {colour}" points="{path}"{dash}/>')
        if len(points) <= 80 and not dashed:
            self.dots(points, colour, name=name)
        elif name:
            self._legend.append((colour, name))

    def band(self, lower: Points, upper: Points, colour: str) -> None:
        """Fill between two lines."""
        points = [*lower, *reversed(upper)]
        if points:
            path = " ".join(f"{self.x(x):.1f},{self.y(y):.1f}" for x, y in points)
            self._parts.append(f'<polygon class="band {colour}" points="{path}"/>')

    def dots(self, points: Points, colour: str, name: str = "", radius: float = 2.4) -> None:
        """Draw a dot at each point, with a tooltip."""
        for x, y in points:
            self._parts.append(
                f'<circle class="dot {colour}" cx="{self.x(x):.1f}" cy="{self.y(y):.1f}" r="{radius}">'
                f"<title>{escape(name)} {number(x)}, {number(y)}</title></circle>"
            )
        if name:
            self._legend.append((colour, name))

    def mark_x(self, value: float, text: str) -> None:
        """Draw a target on the x axis."""
        if self.x.low <= value <= self.x.high:
            at = self.x(value)
            side, anchor = (-4, "end") if at > WIDTH * 0.8 else (4, "start")
            self._parts.append(
                f'<line class="target" x1="{at:.1f}" x2="{at:.1f}" y1="{_TOP}" y2="{HEIGHT - _BOTTOM}"/>'
                f'<text class="mark" x="{at + side:.1f}" y="{_TOP + 11}" text-anchor="{anchor}">'
                f"{escape(text)}</text>"
            )

    def mark_y(self, value: float, text: str) -> None:
        """Draw a target on the y axis."""
        if self.y.low <= value <= self.y.high:
            at = self.y(value)
            self._parts.append(
                f'<line class="target" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>'
                f'<text class="mark" x="{WIDTH - _RIGHT - 4}" y="{at - 4:.1f}" text-anchor="end">'
                f"{escape(text)}</text>"
            )

    def render(self) -> str:
        """Return the plot as a figure."""
        keys = "".join(
            f'<span class="key"><i class="{colour}"></i>{escape(name)}</span>'
            for colour, name in self._legend
        )
        note = f'<p class="note">{escape(self._note)}</p>' if self._note else ""
        return (
            f'<figure><figcaption>{escape(self._title)}<span class="keys">{keys}</span></figcaption>'
            f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(self._alt)}">'
            f"{''.join(self._parts)}</svg>{note}</figure>"
        )


def _grid(x: Scale, y: Scale, x_name: str, y_name: str) -> str:
    right, bottom = WIDTH - _RIGHT, HEIGHT - _BOTTOM
    parts = []
    for value in y.ticks():
        at = y(value)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{right}" y1="{at:.1f}" y2="{at:.1f}"/>')
        parts.append(
            f'<text class="tick" x="{_LEFT - 8}" y="{at + 3.5:.1f}" text-anchor="end">{number(value)}</text>'
        )
    for value in x.ticks(7):
        at = x(value)
        parts.append(f'<line class="grid" x1="{at:.1f}" x2="{at:.1f}" y1="{bottom}" y2="{bottom + 4}"/>')
        parts.append(
            f'<text class="tick" x="{at:.1f}" y="{bottom + 17}" text-anchor="middle">{number(value)}</text>'
        )
    parts.append(f'<line class="axis" x1="{_LEFT}" x2="{right}" y1="{bottom}" y2="{bottom}"/>')
    middle = (_TOP + bottom) / 2
    parts.append(
        f'<text class="name" x="{(_LEFT + right) / 2}" y="{HEIGHT - 8}" text-anchor="middle">'
        f"{escape(x_name)}</text>"
        f'<text class="name" transform="translate(14 {middle}) rotate(-90)" text-anchor="middle">'
        f"{escape(y_name)}</text>"
    )
    return "".join(parts)
