"""Real tables for the benchmarks, with public schemas; read by path, never copied."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from models.schema import StudySchema

ADULT_NAMES = [
    *("age", "workclass", "fnlwgt", "education", "education-num", "marital-status", "occupation"),
    *("relationship", "race", "sex", "capital-gain", "capital-loss", "hours-per-week", "native-country"),
    "income",
]


@dataclass(frozen=True)
class BenchmarkData:
    """A table split into training and held-out patients.

    Attributes:
        name: of the data set.
        schema: public bounds and categories.
        train: rows that sites hold.
        test: rows that nobody trains on.
        site: (len(train),) the site that each training row belongs to by nature, or None: split at random.
    """

    name: str
    schema: StudySchema
    train: pd.DataFrame
    test: pd.DataFrame
    site: np.ndarray | None = None

    def split(self, num_sites: int, *, seed: int = 0) -> list[pd.DataFrame]:
        """The sites' own tables; at random where there are no natural sites."""
        if self.site is not None:
            return [self.train[self.site == name] for name in np.unique(self.site)]
        which = np.random.default_rng(seed).permutation(len(self.train)) % num_sites
        return [self.train[which == site].reset_index(drop=True) for site in range(num_sites)]


def data_folder(given: Path | None) -> Path:
    """`--data`, or the environment's FEDTWIN_DATA.

    Raises:
        FileNotFoundError: neither names a folder.
    """
    folder = given or Path(os.environ.get("FEDTWIN_DATA", ""))
    if str(folder) in ("", ".") or not folder.is_dir():
        raise FileNotFoundError("give the folder with the data sets: --data DIR, or FEDTWIN_DATA=DIR")
    return folder


def load(name: str, folder: Path) -> BenchmarkData:
    """A data set by name.

    Raises:
        KeyError: there is none of that name.
        FileNotFoundError: its files are not in the folder.
    """
    return LOADERS[name](folder)


def load_adult(folder: Path) -> BenchmarkData:
    """UCI Adult: 32,561 + 16,281 rows, the 13 columns and bins of prototypes/tabular_common.py.

    The categories are those of the data's public code book (adult.names); '?' is one of them.
    """
    parts = [
        pd.read_csv(
            folder / "uci_adult" / f"adult-{part}.csv",
            header=None,
            names=ADULT_NAMES,
            skipinitialspace=True,
            keep_default_na=False,
        )
        for part in ("train", "test")
    ]
    for part in parts:
        part["income"] = part["income"].str.rstrip(".")
    both = pd.concat(parts)
    grids = {
        "age": {"minimum": 17.0, "maximum": 90.0, "bins": 24},
        "capital-gain": {
            "minimum": 0.0,
            "maximum": 100_000.0,
            "bins": 15,
            "scale": "log",
            "log_floor": 100.0,
        },
        "capital-loss": {"minimum": 0.0, "maximum": 5_000.0, "bins": 15, "scale": "log", "log_floor": 100.0},
        "hours-per-week": {"minimum": 1.0, "maximum": 99.0, "bins": 24},
    }
    columns: list[dict[str, object]] = []
    for column in ADULT_NAMES:
        if column in ("fnlwgt", "education-num"):
            continue
        if column in grids:
            columns.append({"kind": "continuous", "name": column, "decimals": 0, **grids[column]})
        else:
            names = sorted(both[column].unique())
            columns.append({"kind": "categorical", "name": column, "categories": names})
    schema = StudySchema.model_validate_json(json.dumps({"columns": columns, "label": "income"}))
    train, test = (part[list(schema.names)].reset_index(drop=True) for part in parts)
    return BenchmarkData("adult", schema, train, test)


LOADERS = {"adult": load_adult}
