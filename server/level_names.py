"""What each level of a column stands for: a category, yes or no, a bin, and at last that the value is missing."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from itertools import pairwise

from models.schema import BooleanColumn, CategoricalColumn, Column, DateColumn, OrdinalColumn


def level_names(column: Column, bin_name: Callable[[Column, float, float], str]) -> list[str]:
    """The names in the levels' order.

    Args:
        bin_name: gives a bin's name from its two edges.
    """
    if isinstance(column, CategoricalColumn | OrdinalColumn):
        names = list(column.categories)
    elif isinstance(column, BooleanColumn):
        names = ["no", "yes"]
    else:
        edges = column.edges
        names = [bin_name(column, low, high) for low, high in pairwise(edges)]
    return [*names, "missing"] if column.missing else names


def day_of(column: DateColumn, edge: float) -> str:
    """The day on which a bin of dates begins."""
    return (column.minimum + dt.timedelta(days=int(edge))).isoformat()
