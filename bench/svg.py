"""A line chart as SVG, readable on light and dark pages, without a plotting library."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 640, 360
LEFT, RIGHT, TOP, BOTTOM = 56, 16, 32, 48
_GAP = "\u2003"  # an em wide
COLOURS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd")


@dataclass(frozen=True)
class Curve:
    """A named line through points, left to right."""

    name: str
    points: Sequence[tuple[float, float]]


def line_chart(curves: Sequence[Curve], x_title: str, y_title: str, y_max: float = 0.0) -> str:
    """Return the chart; both axes begin at 0.

    Args:
        y_max: where the vertical one ends; 0: a little above the highest point.
    """
    x_max = max(x for curve in curves for x, _ in curve.points)
    y_max = y_max or 1.1 * max(y for curve in curves for _, y in curve.points)
    step_x, step_y = _step(x_max), _step(y_max)

    def at(x: float, y: float) -> tuple[float, float]:
        return (
            LEFT + x / x_max * (WIDTH - LEFT - RIGHT),
            HEIGHT - BOTTOM - y / y_max * (HEIGHT - TOP - BOTTOM),
        )

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'font-family="sans-serif" font-size="12"><title>{html.escape(f"{y_title} over {x_title}")}</title>',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
    ]
    for index in range(int(y_max / step_y) + 1):
        x, y = at(0, index * step_y)
        parts.append(f'<path d="M{x:.1f} {y:.1f}H{WIDTH - RIGHT}" stroke="#dddddd"/>')
        parts.append(f'<text x="{x - 6:.1f}" y="{y + 4:.1f}" text-anchor="end">{index * step_y:g}</text>')
    for index in range(int(x_max / step_x) + 1):
        x, y = at(index * step_x, 0)
        parts.append(f'<text x="{x:.1f}" y="{y + 16:.1f}" text-anchor="middle">{index * step_x:g}</text>')
    middle = (HEIGHT - BOTTOM + TOP) / 2
    parts.append(
        f'<text x="{WIDTH / 2}" y="{HEIGHT - 10}" text-anchor="middle">{html.escape(x_title)}</text>'
    )
    parts.append(
        f'<text transform="translate(14 {middle}) rotate(-90)" text-anchor="middle">'
        f"{html.escape(y_title)}</text>"
    )
    names = []
    for number, curve in enumerate(curves):
        colour = COLOURS[number % len(COLOURS)]
        places = [at(x, y) for x, y in curve.points]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in places]
        names.append(f'<tspan fill="{colour}">{html.escape(curve.name)}</tspan>')
    parts.append(f'<text x="{WIDTH - RIGHT}" y="{TOP - 14}" text-anchor="end">{_GAP.join(names)}</text>')
    return "\n".join([*parts, "</svg>\n"])


def _step(top: float) -> float:
    """Return a round distance between lines, such that there are 4 to 10."""
    step = 10.0**-6
    while True:
        for factor in (1, 2, 5):
            if top / (step * factor) <= 8:
                return step * factor
        step *= 10
