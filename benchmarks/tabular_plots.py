"""Small line charts over epsilon as one SVG, drawn here: no plotting library is a dependency of the project."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

WIDTH, HEIGHT = 250.0, 178.0  # of a panel, in units of the view box
LEFT, RIGHT, TOP, BOTTOM = 46.0, 10.0, 34.0, 30.0
COLOURS = ("#1f5fa8", "#c2571a", "#3d7a3d", "#7a4b94")
MARKERS = ("circle", "square", "diamond", "triangle")


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One chart.

    Attributes:
        title: of the data set.
        axis: what the vertical axis shows, with which direction is better.
        lines: for each name, the values of all runs at each epsilon.
        levels: horizontal dashed lines by name.
    """

    title: str
    axis: str
    lines: Mapping[str, Mapping[float, Sequence[float]]]
    levels: Mapping[str, float]


@dataclass(frozen=True)
class Figure:
    """Panels in rows of `columns`, with one legend."""

    panels: Sequence[Panel]
    columns: int

    def svg(self, title: str) -> str:
        """The whole picture, on a white ground so that it reads in a dark viewer too."""
        rows = math.ceil(len(self.panels) / self.columns)
        width, height = self.columns * WIDTH, rows * HEIGHT + 34
        parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" role="img" '
            f'font-family="sans-serif" font-size="10" fill="#222">',
            f"<title>{escape(title)}</title>",
            f'<rect width="{width:g}" height="{height:g}" fill="#fff"/>',
        ]
        for place, panel in enumerate(self.panels):
            row, column = divmod(place, self.columns)
            parts.append(f'<g transform="translate({column * WIDTH:g} {row * HEIGHT:g})">{_panel(panel)}</g>')
        parts.append(_legend(self.panels[0], 12.0, rows * HEIGHT + 16))
        return "\n".join([*parts, "</svg>"]) + "\n"


def _panel(panel: Panel) -> str:
    epsilons = sorted({epsilon for line in panel.lines.values() for epsilon in line})
    means = [float(np.mean(v)) for line in panel.lines.values() for v in line.values()]
    everything = [*means, *(x for line in panel.lines.values() for v in line.values() for x in v)]
    everything += list(panel.levels.values())
    ticks = _ticks(min(everything), max(everything))
    low, high = min(ticks[0], min(everything)), max(ticks[-1], max(everything))

    def x_of(epsilon: float) -> float:
        span = math.log(epsilons[-1] / epsilons[0]) or 1.0
        return LEFT + 12 + math.log(epsilon / epsilons[0]) / span * (WIDTH - LEFT - RIGHT - 24)

    def y_of(value: float) -> float:
        return TOP + (high - value) / (high - low) * (HEIGHT - TOP - BOTTOM)

    parts = [
        f'<text x="{LEFT:g}" y="12" font-size="11" font-weight="bold">{escape(panel.title)}</text>',
        f'<text x="{LEFT:g}" y="25" fill="#555">{escape(panel.axis)}</text>',
    ]
    for tick in ticks:
        y = y_of(tick)
        parts.append(f'<path d="M{LEFT:g} {y:.1f}H{WIDTH - RIGHT:g}" stroke="#e4e4e4"/>')
        parts.append(
            f'<text x="{LEFT - 5:g}" y="{y + 3.5:.1f}" text-anchor="end">{tick:.{_digits(ticks)}f}</text>'
        )
    for name, value in panel.levels.items():
        dash = "2 3" if name.startswith("real") else "7 4"
        parts.append(
            f'<path d="M{LEFT:g} {y_of(value):.1f}H{WIDTH - RIGHT:g}" stroke="#555" stroke-dasharray="{dash}"/>'
        )
    for epsilon in epsilons:
        x = x_of(epsilon)
        parts.append(
            f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 13:g}" text-anchor="middle">{epsilon:g}</text>'
        )
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(
        f'<text x="{middle:g}" y="{HEIGHT - 5:g}" text-anchor="middle" fill="#555">epsilon, log scale</text>'
    )
    for place, line in enumerate(panel.lines.values()):
        points = [(x_of(e), y_of(float(np.mean(line[e]))), line[e]) for e in sorted(line)]
        route = " ".join(f"{x:.1f},{y:.1f}" for x, y, _ in points)
        parts.append(f'<polyline points="{route}" fill="none" stroke="{COLOURS[place]}" stroke-width="1.6"/>')
        for x, y, values in points:
            if len(values) > 1:
                spread = float(np.std(values, ddof=1))
                ends = (y_of(float(np.mean(values)) + side * spread) for side in (1, -1))
                top, bottom = ends
                parts.append(f'<path d="M{x:.1f} {top:.1f}V{bottom:.1f}" stroke="{COLOURS[place]}"/>')
            parts.append(_marker(x, y, place))
    return "".join(parts)


def _marker(x: float, y: float, place: int) -> str:
    colour, kind = COLOURS[place], MARKERS[place]
    if kind == "circle":
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.2" fill="{colour}"/>'
    if kind == "square":
        return f'<rect x="{x - 3:.1f}" y="{y - 3:.1f}" width="6" height="6" fill="{colour}"/>'
    if kind == "diamond":
        return f'<path d="M{x:.1f} {y - 4:.1f}l4 4l-4 4l-4 -4z" fill="{colour}"/>'
    return f'<path d="M{x:.1f} {y - 4:.1f}l4 7h-8z" fill="{colour}"/>'


def _legend(panel: Panel, x: float, y: float) -> str:
    parts = []
    for place, name in enumerate(panel.lines):
        if not panel.lines[name]:
            continue
        parts.append(f'<path d="M{x:g} {y - 4:g}h22" stroke="{COLOURS[place]}" stroke-width="1.6"/>')
        parts.append(_marker(x + 11, y - 4, place))
        parts.append(f'<text x="{x + 28:g}" y="{y:g}">{escape(name)}</text>')
        x += 50 + 5.6 * len(name)
    for name in panel.levels:
        dash = "2 3" if name.startswith("real") else "7 4"
        parts.append(f'<path d="M{x:g} {y - 4:g}h22" stroke="#555" stroke-dasharray="{dash}"/>')
        parts.append(f'<text x="{x + 28:g}" y="{y:g}">{escape(name)}</text>')
        x += 50 + 5.6 * len(name)
    if any(len(values) > 1 for line in panel.lines.values() for values in line.values()):
        parts.append(f'<text x="{x:g}" y="{y:g}" fill="#555">bars: one standard deviation over runs</text>')
    return "".join(parts)


def _ticks(low: float, high: float) -> list[float]:
    """Three to six round numbers that enclose the values."""
    rough = (high - low) / 4 or 1.0
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [step * place for place in range(first, last + 1)]


def _digits(ticks: Sequence[float]) -> int:
    step = ticks[1] - ticks[0]
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    return digits if abs(round(step, digits) - step) < 1e-9 else digits + 1
