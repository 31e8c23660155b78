"""How long to wait before asking again: what polling adds to a wait is a small part of that wait."""

from __future__ import annotations

SHARE = 0.05


def poll_pause(waited_seconds: float, *, least: float, most: float) -> float:
    """Seconds to pause after having waited so long: `SHARE` of it, within bounds.

    >>> [round(poll_pause(waited, least=0.1, most=3.0), 2) for waited in (0.0, 1.0, 20.0, 1000.0)]
    [0.1, 0.1, 1.0, 3.0]
    """
    return min(max(least, SHARE * waited_seconds), most)
