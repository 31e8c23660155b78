"""A table made to have what pairs of columns cannot say: parities of three columns. Nobody's data."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from tabular_data import BenchmarkData

from models.schema import StudySchema

TRIPLES = (("a1", "a2", "a3"), ("b1", "b2", "b3"))
FLIPPED = 0.05
PATIENTS = 40_000


def load_parity(folder: Path | None = None) -> BenchmarkData:
    """40,000 training and 20,000 held-out rows of two triples of coins, a label and five ordinary columns.

    In 95 of 100 rows the third coin of the first triple is the parity of the other two: any two of the three are
    independent, so that no pair says it. The label is the parity of the second triple, whose coins are independent,
    so that no pair says it either, nor a pair by the label. The others hang together in pairs, as ordinary ones do.

    Args:
        folder: not read; every data set's loader takes one.
    """
    names = [*TRIPLES[0], *TRIPLES[1], "label", *(f"c{k}" for k in range(5))]
    levels = {name: ["0", "1"] for name in names} | {f"c{k}": ["0", "1", "2", "3"] for k in range(5)}
    schema = StudySchema.model_validate(
        {
            "columns": [
                {"kind": "categorical", "name": name, "categories": categories}
                for name, categories in levels.items()
            ],
            "label": "label",
        }
    )
    train, test = (_rows(n, seed) for seed, n in enumerate((PATIENTS, PATIENTS // 2)))
    return BenchmarkData(name="parity", schema=schema, train=train, test=test)


def _rows(n: int, seed: int) -> pd.DataFrame:
    source = np.random.default_rng(seed)
    table: dict[str, np.ndarray] = {}
    for triple in TRIPLES:
        table.update(zip(triple, source.integers(0, 2, (3, n)), strict=True))
    table["a3"] = table["a1"] ^ table["a2"] ^ (source.random(n) < FLIPPED)
    table["label"] = table["b1"] ^ table["b2"] ^ table["b3"] ^ (source.random(n) < FLIPPED)
    hidden = source.integers(0, 4, n)
    for k in range(5):
        table[f"c{k}"] = np.where(source.random(n) < 0.6, hidden, source.integers(0, 4, n))
    order = [*TRIPLES[0], *TRIPLES[1], "label", *(f"c{k}" for k in range(5))]
    return pd.DataFrame({name: table[name].astype(str) for name in order})
