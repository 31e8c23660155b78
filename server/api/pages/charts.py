"""Charts as SVG, drawn here: attributes and classes only (no style, no script), each with a title for who hears it.

Every chart stands beside a table of the same figures in its template. Widths are in units of the view box, which
is about one CSS pixel at the size that a chart is shown.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count

from markupsafe import Markup, escape

WIDTH = 320.0
ROW = 22.0
LABEL = 112.0
LABEL_LETTERS = 17
PLOT_HEIGHT = 110.0

_numbers = count()


def bars(rows: Sequence[tuple[str, float]], title: str) -> Markup:
    """Shares of named values as horizontal bars, in the order given.

    Args:
        rows: (name, share in 0 to 1).
        title: what the chart shows.
    """
    highest = max((part for _, part in rows), default=0.0) or 1.0
    room = WIDTH - LABEL - 48
    parts = []
    for place, (name, part) in enumerate(rows):
        middle = place * ROW + ROW / 2
        width = max(part / highest * room, 1.0)
        parts.append(
            f'<text class="tick end" x="{LABEL - 8:.0f}" y="{middle + 4:.0f}">{escape(_cut(name))}</text>'
            f'<rect class="bar" x="{LABEL:.0f}" y="{middle - 7:.1f}" width="{width:.1f}" height="14" rx="2"/>'
            f'<text class="tick" x="{LABEL + width + 6:.1f}" y="{middle + 4:.0f}">{_percent(part)}</text>'
        )
    summary = ", ".join(f"{name} {_percent(part)}" for name, part in rows)
    return _svg("".join(parts), WIDTH, len(rows) * ROW + 4, title, summary)


def histogram(shares: Sequence[float], ticks: Sequence[str], title: str, summary: str) -> Markup:
    """Shares of neighbouring bins as columns of equal width.

    Args:
        shares: of the bins, from low to high.
        ticks: texts under the left end, the middle and the right end.
        title: what the chart shows.
        summary: the same in a sentence.
    """
    highest = max(shares, default=0.0) or 1.0
    step = (WIDTH - 8) / max(len(shares), 1)
    parts = [f'<line class="axis" x1="4" x2="{WIDTH - 4:.0f}" y1="{PLOT_HEIGHT}" y2="{PLOT_HEIGHT}"/>']
    for place, part in enumerate(shares):
        height = part / highest * (PLOT_HEIGHT - 16)
        parts.append(
            f'<rect class="bar" x="{4 + place * step + step * 0.06:.2f}" y="{PLOT_HEIGHT - height:.2f}" '
            f'width="{step * 0.88:.2f}" height="{height:.2f}"/>'
        )
    anchors = (("", 4.0), (" middle", WIDTH / 2), (" end", WIDTH - 4))
    for (anchor, x), text in zip(anchors, ticks, strict=False):
        parts.append(f'<text class="tick{anchor}" x="{x:.0f}" y="{PLOT_HEIGHT + 14}">{escape(text)}</text>')
    parts.append(f'<text class="tick end" x="{WIDTH - 4:.0f}" y="10">highest {_percent(highest)}</text>')
    return _svg("".join(parts), WIDTH, PLOT_HEIGHT + 20, title, summary)


def curve(points: Sequence[tuple[int, float]], title: str, *, unit: str = "") -> Markup:
    """A quantity over the rounds of a run.

    Args:
        points: (round, value), by round.
        title: what the chart shows.
        unit: of the values, with a space before it.
    """
    left, right, top, bottom = 52.0, WIDTH - 10, 10.0, PLOT_HEIGHT
    highest = max((value for _, value in points), default=0.0)
    highest = highest if highest > 0 else 1.0
    first, last = points[0][0], points[-1][0]

    def place(at: int, value: float) -> tuple[float, float]:
        along = (at - first) / (last - first) if last > first else 0.5
        return left + along * (right - left), bottom - max(value, 0.0) / highest * (bottom - top)

    dots = [place(at, value) for at, value in points]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in dots)
    parts = [
        f'<line class="axis" x1="{left}" x2="{right}" y1="{bottom}" y2="{bottom}"/>',
        f'<line class="grid" x1="{left}" x2="{right}" y1="{top}" y2="{top}"/>',
        f'<text class="tick end" x="{left - 6:.0f}" y="{top + 4:.0f}">{escape(f"{highest:.3g}{unit}")}</text>',
        f'<text class="tick end" x="{left - 6:.0f}" y="{bottom + 4:.0f}">0</text>',
        f'<polyline class="line" points="{line}"/>',
        *(f'<circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="3"/>' for x, y in dots),
        f'<text class="tick" x="{left:.0f}" y="{bottom + 15:.0f}">round {first}</text>',
    ]
    if last > first:
        parts.append(f'<text class="tick end" x="{right:.0f}" y="{bottom + 15:.0f}">round {last}</text>')
    summary = ", ".join(f"round {at}: {value:.3g}{unit}" for at, value in points)
    return _svg("".join(parts), WIDTH, PLOT_HEIGHT + 20, title, summary)


def meter(spent: float, cap: float | None, title: str) -> Markup:
    """A spend against its cap, in the colour of a fault where it is more, and a bare text where no cap is known."""
    if not cap or cap <= 0:
        return Markup('<span class="muted">no cap told</span>')
    part = min(max(spent / cap, 0.0), 1.0)
    kind = "meter-used full" if spent > cap else "meter-used"
    drawn = (
        '<rect class="meter-room" x="0" y="0" width="160" height="10" rx="5"/>'
        f'<rect class="{kind}" x="0" y="0" width="{max(part * 160, 2):.1f}" height="10" rx="5"/>'
    )
    return _svg(drawn, 160, 10, title, f"{spent:.3g} of {cap:.3g}", kind="meter")


def _svg(drawn: str, width: float, height: float, title: str, summary: str, *, kind: str = "chart") -> Markup:
    name = f"chart-{next(_numbers)}"
    return Markup(  # noqa: S704 - what is not ours in it went through escape
        f'<svg class="{kind}" viewBox="0 0 {width:.0f} {height:.0f}" role="img" aria-labelledby="{name} {name}-d">'
        f'<title id="{name}">{escape(title)}</title><desc id="{name}-d">{escape(summary)}</desc>{drawn}</svg>'
    )


def _percent(part: float) -> str:
    percent = 100 * part
    if percent >= 10 or percent == 0:
        return f"{percent:.0f} %"
    return f"{percent:.1f} %" if percent >= 0.1 else "< 0.1 %"


def _cut(name: str) -> str:
    return name if len(name) <= LABEL_LETTERS else name[: LABEL_LETTERS - 1] + "…"
