"""What it does to a table that one column is the sum of others: served as drawn, derived, or waited for.

    python benchmarks/sums.py --parts 2 4 --epsilon 1 10

40,000 made-up bills at four sites; each site adds its own noise. "As drawn" declares no constraint: its totals are no
sums. "Derived" is what the product serves. "Waited for" keeps only draws whose total was drawn in the bin of the sum.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from federation import train_federation
from rich.console import Console
from rich.table import Table

from models.conditions import Records
from models.derivations import Derivation
from models.encoding import encode_table
from models.generator import MixtureGenerator
from models.sampling import CohortSampler
from models.schema import StudySchema
from models.study import Study

PATIENTS = 40_000
HIGHEST = 3_000


class _Waited(Derivation):
    """The target stays as it was drawn where the sum lies in that bin, and fails elsewhere."""

    def applied(self, records: Records) -> Records:
        made = super().applied(records)
        same = made.levels[:, self.target] == records.levels[:, self.target]
        number = np.where(same, made.numbers[self.target], -1.0)
        return Records(records.levels, {**records.numbers, self.target: number})


def bills(parts: int, *, seed: int) -> pd.DataFrame:
    """Parts of a bill, skewed, some of them 0, higher for the old and the sick; and their sum."""
    source = np.random.default_rng(seed)
    sick = source.random(PATIENTS) < 0.3
    age = np.clip(source.normal(50 + 15 * sick, 15), 18, 95).astype(int)
    table: dict[str, np.ndarray] = {"age": age, "sick": sick}
    for part in range(parts):
        typical = 5.5 + 0.8 * sick + 0.01 * (age - 50)
        amount = np.minimum(np.exp(source.normal(typical, 0.8)), HIGHEST)
        table[f"part{part}"] = np.round(np.where(source.random(PATIENTS) < 0.25 * (part > 0), 0, amount), 2)
    table["total"] = np.round(sum(table[f"part{part}"] for part in range(parts)), 2)
    return pd.DataFrame(table)


def schema_of(parts: int, *, bound: bool) -> StudySchema:
    """The bills' columns, with the sum as a constraint or without."""
    money = {"kind": "continuous", "minimum": 0, "decimals": 2, "bins": 16, "scale": "log", "log_floor": 10}
    names = [f"part{part}" for part in range(parts)]
    return StudySchema.model_validate(
        {
            "columns": [
                {"name": "age", "kind": "integer", "minimum": 18, "maximum": 95, "bins": 16},
                {"name": "sick", "kind": "boolean"},
                *({"name": name, "maximum": HIGHEST, **money} for name in names),
                {"name": "total", "maximum": HIGHEST * parts, **money},
            ],
            "constraints": [f"total == {' + '.join(names)}"] if bound else [],
            "label": "sick",
        }
    )


def distances(drawn: np.ndarray, real: np.ndarray, sizes: Sequence[int]) -> list[tuple[float, float]]:
    """Mean total variation distance of 1, 2 and 3 columns: those with the total, and those without."""
    found = []
    for ways in (1, 2, 3):
        told: tuple[list[float], list[float]] = ([], [])
        for columns in itertools.combinations(range(len(sizes)), ways):
            shape = [sizes[column] for column in columns]
            tables = [
                np.bincount(np.ravel_multi_index(rows[:, columns].T, shape), minlength=int(np.prod(shape)))
                / len(rows)
                for rows in (drawn, real)
            ]
            with_total = len(sizes) - 1 in columns
            told[not with_total].append(float(np.abs(tables[0] - tables[1]).sum() / 2))
        found.append((float(np.mean(told[0])), float(np.mean(told[1]))))
    return found


def samplers(generator: MixtureGenerator, parts: int) -> dict[str, CohortSampler]:
    """The three ways to serve the same release."""
    free, bound = schema_of(parts, bound=False), schema_of(parts, bound=True)
    waited = CohortSampler(generator, bound)
    waited._derivations = tuple(_Waited(**vars(one)) for one in waited._derivations)
    waited.report = waited._weigh(0.0)
    return {
        "as drawn": CohortSampler(generator, free),
        "derived": CohortSampler(generator, bound),
        "waited for": waited,
    }


def main() -> None:
    """Read the command line, run, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--parts", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--epsilon", type=float, nargs="+", default=[1.0, 10.0])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    table = Table(title="total variation distance to held-out bills, of columns with the total / without it")
    for name in ("parts", "epsilon", "served", "kept", "1-way", "2-way", "3-way", "rows that add up"):
        table.add_column(name, justify="right")
    for parts, epsilon in itertools.product(arguments.parts, arguments.epsilon):
        free = schema_of(parts, bound=False)
        definition = {"name": "bills", "privacy": {"epsilon": epsilon, "delta": 1e-5}}
        study = Study.from_dict({**definition, "table": free.model_dump(mode="json")})
        patients = bills(parts, seed=0)
        generator = train_federation(study, [patients.iloc[site::4] for site in range(4)])
        real = encode_table(bills(parts, seed=1), free).codes.numpy()
        for name, sampler in samplers(generator, parts).items():
            drawn = pd.concat(sampler.chunks(PATIENTS, seed=1))
            cents = np.rint(drawn.filter(regex="part|total") * 100)
            adds_up = (cents["total"] == cents.drop(columns="total").sum(axis=1)).mean()
            found = distances(encode_table(drawn, free).codes.numpy(), real, free.cardinalities)
            cells = [f"{with_total:.3f} / {without:.3f}" for with_total, without in found]
            kept = f"{sampler.report.acceptance:.2f}"
            table.add_row(str(parts), f"{epsilon:g}", name, kept, *cells, f"{adds_up:.2%}")
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
