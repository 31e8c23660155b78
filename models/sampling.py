"""Cohorts from a generator: post-processing of a release, so seeds are allowed and nothing is spent.

A condition is honoured exactly, and so are the schema's constraints. Where it is a union of boxes the components
are re-weighted by the probability of each box and the columns' distributions truncated to it; where it compares
columns with each other, records are drawn until enough satisfy it. A column that a constraint sets equal to others is
computed from them (`models.derivations`); a condition of a request only ever selects. Every record is tested once more
as decoded, so all that are served satisfy the condition to the last digit.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from models.boxes import Box, NotFactorisableError, disjoint_boxes
from models.condition_reader import parse_conditions
from models.conditions import AllOf, Condition, Records, columns_of, sums_in
from models.decoding import decode_table, numbers_at
from models.derivations import derivations_of
from models.generator import MixtureGenerator, draw_codes
from models.schema import BooleanColumn, CategoricalColumn, Column, OrdinalColumn, StudySchema
from models.table import column_offsets

CHUNK_PATIENTS = 100_000
MIN_PROBABILITY = 1e-4
_PLACES = 4096
_PILOT_RECORDS = 200_000
_NAMED = CategoricalColumn | OrdinalColumn | BooleanColumn


class RareConditionError(ValueError):
    """Too few of the release's patients satisfy the condition for it to say anything about them.

    Attributes:
        probability: of a patient of the release to satisfy it.
    """

    def __init__(self, probability: float, minimum: float) -> None:
        self.probability = probability
        told = f"1 patient in {1 / probability:,.0f}" if probability > 0 else "no patient"
        super().__init__(
            f"{told} of this release satisfies the conditions; at least 1 in {1 / minimum:,.0f} must, "
            "because rarer groups are shaped by the privacy noise: widen the conditions"
        )


@dataclass(frozen=True, kw_only=True)
class ConditionReport:
    """How conditions meet a generator.

    Attributes:
        probability: of a patient of the release to satisfy them, given the schema's constraints; without
            conditions, of a draw to satisfy the constraints.
        exact: whether it is computed; else it is estimated from a pilot draw.
        acceptance: the part of drawn records that is kept.
        effective_components: 1 / sum of squared weights of the components that the cohort is drawn from; a
            small number says that few of the generator's shapes support it.
    """

    probability: float
    exact: bool
    acceptance: float
    effective_components: float

    def effective_sample_size(self, num_patients: int) -> int:
        """Independent patients in a cohort of that size: all of them, because draws are never re-used."""
        return num_patients


def sample_cohort(
    generator: MixtureGenerator,
    schema: StudySchema,
    num_patients: int,
    *,
    seed: int,
    conditions: Sequence[str | Mapping[str, Any] | Condition] = (),
    min_probability: float = MIN_PROBABILITY,
) -> Iterator[pd.DataFrame]:
    """Draw synthetic patients.

    Args:
        generator: of a release.
        schema: of its study.
        num_patients: at least 1.
        seed: the same seed, number and conditions give the same patients.
        conditions: all must hold; see `models.conditions`.
        min_probability: conditions that fewer patients of the release satisfy are refused.

    Returns:
        Tables of at most `CHUNK_PATIENTS` rows, together `num_patients`.

    Raises:
        ValueError: num_patients is not 1 or more.
        ConditionError: a condition cannot be read.
        RareConditionError: the conditions are too rare to honour.
    """
    if isinstance(num_patients, bool) or not isinstance(num_patients, int) or num_patients < 1:
        raise ValueError(f"num_patients is {num_patients!r}; it must be a whole number, 1 or more")
    sampler = CohortSampler(generator, schema, conditions, min_probability=min_probability)
    return sampler.chunks(num_patients, seed=seed)


class CohortSampler:
    """A generator under conditions.

    Attributes:
        report: how the conditions meet the generator.
    """

    def __init__(
        self,
        generator: MixtureGenerator,
        schema: StudySchema,
        conditions: Sequence[str | Mapping[str, Any] | Condition] = (),
        *,
        min_probability: float = MIN_PROBABILITY,
    ) -> None:
        """Read the conditions and weigh the components.

        Raises:
            ConditionError, RareConditionError: see `sample_cohort`.
        """
        if generator.cardinalities != schema.cardinalities:
            raise ValueError("the generator was trained on another schema")
        self._schema = schema
        with torch.no_grad():
            self._weights = generator.weights().double()
            probabilities = generator.probabilities().double()
            self._marginals = [
                part.numpy() for part in (self._weights @ probabilities).split(schema.cardinalities)
            ]
        wanted = parse_conditions(conditions, schema)
        always = parse_conditions(schema.constraints, schema)
        self._condition = AllOf((*always, *wanted)) if always or wanted else None
        self._derivations = derivations_of(always, schema)
        derived = {one.target for one in self._derivations}
        box_conditions: list[Condition] = []
        self._rejecting = bool(derived)
        for part in () if self._condition is None else self._condition.parts:
            if derived & columns_of(part):
                continue  # as drawn they say nothing yet of what is served
            try:
                disjoint_boxes(AllOf((*box_conditions, part)))
                box_conditions.append(part)
            except NotFactorisableError:
                self._rejecting = True
        boxes = disjoint_boxes(AllOf(tuple(box_conditions))) if box_conditions else [{}]
        self._boxes = [_ConditionedBox(self, probabilities, box) for box in boxes]
        self._sums = sums_in(self._condition) if self._condition else []
        self.report = self._weigh(min_probability)
        if always and wanted:
            possible = CohortSampler(generator, schema, min_probability=0).report.probability
            self.report = replace(self.report, probability=min(1.0, self.report.probability / possible))

    def chunks(self, num_patients: int, *, seed: int) -> Iterator[pd.DataFrame]:
        """Draw; see `sample_cohort`."""
        starts = range(0, num_patients, CHUNK_PATIENTS)
        for chunk, start in enumerate(starts):
            rng = np.random.default_rng([abs(seed), int(seed < 0), chunk])
            yield self._chunk(min(CHUNK_PATIENTS, num_patients - start), rng)

    def _chunk(self, n: int, rng: np.random.Generator) -> pd.DataFrame:
        kept: list[Records] = []
        missing = n
        while missing > 0:
            spare = 1.1 * missing + 16 if self._condition else missing
            num_drawn = min(int(spare / self.report.acceptance), 4 * CHUNK_PATIENTS)
            records = self._records(*self._draw(num_drawn, rng))
            if self._condition:
                records = records.chosen(np.flatnonzero(self._served(records))[:missing])
            kept.append(records)
            missing -= len(kept[-1].levels)
        codes = torch.from_numpy(np.concatenate([part.levels for part in kept]))
        numbers = {
            column: np.concatenate([part.numbers[column] for part in kept]) for column in kept[0].numbers
        }
        return decode_table(codes, self._schema, rng=rng, marginals=self._marginals, numbers=numbers)

    def _draw(self, n: int, rng: np.random.Generator) -> tuple[Tensor, dict[int, np.ndarray]]:
        """Records of the boxes in random order, and the places in their bins of the columns under condition."""
        mass = np.array([box.probability for box in self._boxes])
        shares = rng.multinomial(n, mass / mass.sum())
        drawn = [box.draw(int(share), rng) for box, share in zip(self._boxes, shares, strict=True) if share]
        if len(drawn) == 1:
            return drawn[0]
        shuffled = rng.permutation(n)
        codes = torch.cat([codes for codes, _ in drawn])[torch.from_numpy(shuffled)]
        return codes, {c: np.concatenate([places[c] for _, places in drawn])[shuffled] for c in drawn[0][1]}

    def _records(self, codes: Tensor, places: Mapping[int, np.ndarray]) -> Records:
        levels = codes.numpy()
        numbers = {}
        for column, place in places.items():
            grid = self._schema.columns[column]
            assert not isinstance(grid, _NAMED)
            numbers[column] = numbers_at(grid, levels[:, column], place, self._marginals[column])
        records = Records(levels, numbers)
        for derivation in self._derivations:
            records = derivation.applied(records)
        return records

    def _served(self, records: Records) -> np.ndarray:
        """Which records satisfy everything, and have numbers that their sums are exact with: (N,) bool."""
        if self._condition is None:
            return np.ones(len(records.levels), dtype=bool)
        exact = [one.on_grid(records) for one in self._sums]
        return np.logical_and.reduce([self._condition.holds(records), *exact])

    def _weigh(self, minimum: float) -> ConditionReport:
        probability = float(sum(box.probability for box in self._boxes))
        if self._condition is not None and probability < minimum:
            raise RareConditionError(probability, minimum)
        acceptance = 1.0
        if self._rejecting:
            records = self._records(*self._draw(_PILOT_RECORDS, np.random.default_rng(0)))
            acceptance = float(self._served(records).mean())
            probability *= acceptance
            if probability < minimum or acceptance * _PILOT_RECORDS < 10:
                raise RareConditionError(probability, minimum)
        posterior = torch.stack([box.weights for box in self._boxes]).sum(0)
        posterior = posterior / posterior.sum()
        return ConditionReport(
            probability=min(probability, 1.0),
            exact=not self._rejecting,
            acceptance=acceptance,
            effective_components=float(1 / (posterior**2).sum()),
        )


class _ConditionedBox:
    """The generator restricted to one box."""

    def __init__(self, sampler: CohortSampler, probabilities: Tensor, box: Box) -> None:
        self._cardinalities = sampler._schema.cardinalities
        self._grids = [
            index
            for index, column in enumerate(sampler._schema.columns)
            if not isinstance(column, _NAMED)
            and sampler._condition is not None
            and index in columns_of(sampler._condition)
        ]
        self._allowed: dict[int, list[np.ndarray]] = {}
        self._probabilities, self.weights = probabilities, sampler._weights
        if box:
            offsets = column_offsets(self._cardinalities).tolist()
            self._probabilities = probabilities.clone()
            for index, conditions in box.items():
                column = sampler._schema.columns[index]
                allowed = _allowed_places(column, index, conditions, sampler._marginals[index])
                share = torch.from_numpy(allowed.mean(1))
                part = self._probabilities[:, offsets[index] : offsets[index + 1]]
                part *= share
                self.weights = self.weights * part.sum(1)
                if not isinstance(column, _NAMED):
                    self._allowed[index] = [np.flatnonzero(row) for row in allowed]
        self.probability = float(self.weights.sum())

    def draw(self, n: int, rng: np.random.Generator) -> tuple[Tensor, dict[int, np.ndarray]]:
        source = torch.Generator().manual_seed(int(rng.integers(2**62)))
        codes = draw_codes(self._probabilities, self.weights, self._cardinalities, n, generator=source)
        places = {}
        for column in self._grids:
            place = rng.random(n)
            levels = codes[:, column].numpy()
            for level, allowed in enumerate(self._allowed.get(column, ())):
                if 0 < len(allowed) < _PLACES:
                    rows = np.flatnonzero(levels == level)
                    place[rows] = (
                        allowed[rng.integers(len(allowed), size=len(rows))] + place[rows]
                    ) / _PLACES
            places[column] = place
        return codes, places


def _allowed_places(
    column: Column, index: int, conditions: Sequence[Condition], marginal: np.ndarray
) -> np.ndarray:
    """Which equal parts of each level's mass satisfy the conditions: (cardinality, places) bool."""
    named = isinstance(column, _NAMED)
    places = 1 if named else _PLACES
    level = np.repeat(np.arange(column.cardinality), places)
    numbers: dict[int, np.ndarray] = {}
    if not isinstance(column, _NAMED):
        middle = np.tile((np.arange(places) + 0.5) / places, column.cardinality)
        numbers[index] = numbers_at(column, level, middle, marginal)
    levels = np.zeros((len(level), index + 1), dtype=np.int64)
    levels[:, index] = level
    return AllOf(tuple(conditions)).holds(Records(levels, numbers)).reshape(column.cardinality, places)
