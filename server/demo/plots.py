"""The report's plots as inline SVG: colours are the page's CSS variables, so light and dark need one drawing."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np

from models.schema import ContinuousColumn, DateColumn, IntegerColumn
from server.demo.comparison import Marginal

WIDTH, HEIGHT = 340, 170
LEFT, RIGHT, TOP, BOTTOM = 36, 8, 10, 26


def marginal_plot(marginal: Marginal) -> str:
    """One column's shares: real as filled bars, synthetic as bars beside them or, on a grid, as a stepped line.

    Returns:
        An `<svg>` with a text alternative.
    """
    is_grid = isinstance(marginal.column, IntegerColumn | ContinuousColumn | DateColumn)
    top = _round_up(max(*marginal.real, *marginal.synthetic, 0.01))
    inner, floor = WIDTH - LEFT - RIGHT, HEIGHT - BOTTOM
    slot = inner / len(marginal.levels)

    def height_of(share: float) -> float:
        return (floor - TOP) * share / top

    parts = [_axis(top, floor)]
    for index, (real, synthetic) in enumerate(zip(marginal.real, marginal.synthetic, strict=True)):
        left = LEFT + index * slot
        if is_grid:
            parts.append(_bar("real", left + 0.75, slot - 1.5, floor, height_of(real)))
        else:
            width = min(0.38 * slot, 44)
            middle = left + slot / 2
            parts.append(_bar("real", middle - width - 1, width, floor, height_of(real)))
            parts.append(_bar("synthetic", middle + 1, width, floor, height_of(synthetic)))
    if is_grid:
        points = [
            f"{LEFT + (index + side) * slot:.1f},{floor - height_of(share):.1f}"
            for index, share in enumerate(marginal.synthetic)
            for side in (0, 1)
        ]
        parts.append(f'<polyline class="synthetic-line" points="{" ".join(points)}"/>')
    every = max(1, -(-len(marginal.levels) // (7 if is_grid else 8)))
    for index in range(0, len(marginal.levels), every):
        # A bin's name is its left edge, so its label stands there; a category's stands under its bars.
        at = LEFT + (index + (0 if is_grid else 0.5)) * slot
        parts.append(
            f'<text x="{at:.1f}" y="{floor + 15}" class="tick middle">{escape(marginal.levels[index])}</text>'
        )
    title = escape(marginal.column.title or marginal.column.name)
    story = (
        f"{title}: shares of {len(marginal.levels)} levels, real against synthetic; "
        f"total variation distance {marginal.distance:.3f}"
    )
    return _svg(WIDTH, HEIGHT, story, "".join(parts))


def correlation_plot(names: Sequence[str], matrix: np.ndarray, story: str, *, full: float = 1.0) -> str:
    """A heat map of a symmetric matrix; columns carry the rows' numbers.

    Args:
        names: of the rows, C.
        matrix: values in [-1, 1], (C, C).
        story: the text alternative.
        full: the absolute value that gets full colour.
    """
    cell, label = 15, 132
    parts = []
    for row, name in enumerate(names):
        y = row * cell
        parts.append(f'<text x="{label - 6}" y="{y + 11}" class="tick end">{escape(name)} {row + 1}</text>')
        parts.append(
            f'<text x="{label + (row + 0.5) * cell}" y="{len(names) * cell + 12}" class="tick middle">{row + 1}</text>'
        )
        for column in range(len(names)):
            value = float(matrix[row, column])
            strength = min(1.0, abs(value) / full)
            sign = "positive" if value >= 0 else "negative"
            parts.append(
                f'<rect x="{label + column * cell}" y="{y}" width="{cell - 1}" height="{cell - 1}" class="cell"/>'
                f'<rect x="{label + column * cell}" y="{y}" width="{cell - 1}" height="{cell - 1}" class="{sign}" '
                f'fill-opacity="{strength:.3f}"><title>{escape(name)}, {escape(names[column])}: {value:+.2f}'
                "</title></rect>"
            )
    return _svg(label + len(names) * cell, len(names) * cell + 18, story, "".join(parts))


def _svg(width: float, height: float, story: str, body: str) -> str:
    return (
        f'<svg role="img" aria-label="{story}" viewBox="0 0 {width:g} {height:g}" '
        f'xmlns="http://www.w3.org/2000/svg"><title>{story}</title>{body}</svg>'
    )


def _bar(kind: str, left: float, width: float, floor: float, height: float) -> str:
    return f'<rect class="{kind}" x="{left:.1f}" y="{floor - height:.1f}" width="{width:.1f}" height="{height:.1f}"/>'


def _axis(top: float, floor: float) -> str:
    lines = []
    for part in (0.0, 0.5, 1.0):
        y = floor - (floor - TOP) * part
        lines.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        lines.append(f'<text x="{LEFT - 5}" y="{y + 3:.1f}" class="tick end">{100 * top * part:.3g}%</text>')
    return "".join(lines)


def _round_up(share: float) -> float:
    for step in (0.02, 0.04, 0.06, 0.08, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8):
        if share <= step:
            return step
    return 1.0
