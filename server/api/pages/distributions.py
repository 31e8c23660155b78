"""What a release says of each column: the exact one-way distribution of its generator, ready to be drawn.

Post-processing of the release: it costs nothing and touches no site. A generator and its distributions are kept in
memory by the digest of the weights, which names them for good.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch

from models.schema import BooleanColumn, CategoricalColumn, Column, DateColumn, OrdinalColumn
from models.study import Study
from models.study_generator import StudyGenerator
from models.weights import decode_arrays
from server.level_names import day_of, level_names
from server.releases import Release
from server.store import Store

MAX_BARS = 12


@dataclass(frozen=True, kw_only=True)
class Distribution:
    """A column's distribution.

    Attributes:
        column: of the data dictionary.
        rows: (level, share) of all levels, in the schema's order, the missing one last.
        drawn: those that are drawn as bars, or the shares of all bins of a grid.
        is_grid: whether the levels are neighbouring bins of numbers or dates.
        ticks: for a grid: lowest, middle and highest edge.
        missing: share of patients without a value; None where none may be missing.
        left_out: how many levels are in the table only.
    """

    column: Column
    rows: Sequence[tuple[str, float]]
    drawn: Sequence[tuple[str, float]]
    is_grid: bool
    ticks: Sequence[str]
    missing: float | None
    left_out: int

    @property
    def summary(self) -> str:
        """The highest bin in words."""
        name, part = max(self.drawn, key=lambda row: row[1])
        return f"{len(self.drawn)} bins from {self.ticks[0]} to {self.ticks[-1]}; most in {name}, {100 * part:.1f} %"


def load_generator(store: Store, release: Release, study: Study) -> StudyGenerator:
    """The generator of a release, from memory where it was loaded before."""
    return _generator(_Weights(store, release.weights_digest, study))


def distributions(store: Store, release: Release, study: Study) -> list[Distribution]:
    """Every column's distribution, in the schema's order, before the schema's constraints are applied."""
    generator = load_generator(store, release, study).table
    with torch.no_grad():
        parts = generator.one_way().split(study.table.cardinalities)
    columns = study.table.columns
    return [_distribution(column, part.tolist()) for column, part in zip(columns, parts, strict=True)]


class _Weights:
    """Names a file for the cache: equal where the digests are, whatever store holds it."""

    def __init__(self, store: Store, digest: str, study: Study) -> None:
        self.store, self.digest, self.study = store, digest, study

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Weights) and other.digest == self.digest

    def __hash__(self) -> int:
        return hash(self.digest)


@lru_cache(maxsize=8)
def _generator(weights: _Weights) -> StudyGenerator:
    return StudyGenerator.from_arrays(decode_arrays(weights.store.load(weights.digest)), weights.study)


def _distribution(column: Column, shares: Sequence[float]) -> Distribution:
    rows = list(zip(level_names(column, _bin), shares, strict=True))
    present = rows[:-1] if column.missing else rows
    grid = not isinstance(column, CategoricalColumn | OrdinalColumn | BooleanColumn)
    drawn, ticks = present, []
    if grid:
        edges = column.edges  # type: ignore[union-attr]
        ticks = [_edge(column, edges[place]) for place in (0, len(edges) // 2, -1)]
    elif len(present) > MAX_BARS:
        drawn = sorted(present, key=lambda row: -row[1])[:MAX_BARS]
    return Distribution(
        column=column,
        rows=rows,
        drawn=drawn,
        is_grid=grid,
        ticks=ticks,
        missing=rows[-1][1] if column.missing else None,
        left_out=len(present) - len(drawn),
    )


def _bin(column: Column, low: float, high: float) -> str:
    if column.kind == "continuous":
        return f"{_edge(column, low)} to {_edge(column, high)}"
    first, last = _edge(column, low), _edge(column, high - 1)
    return first if first == last else f"{first} to {last}"


def _edge(column: Column, value: float) -> str:
    if isinstance(column, DateColumn):
        return day_of(column, value)
    return f"{value:,.0f}" if column.kind == "integer" or abs(value) >= 1000 else f"{value:.4g}"
