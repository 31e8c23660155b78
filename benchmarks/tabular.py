"""How well a federation learns a real table, beside a hospital alone and beside doing nothing.

    python benchmarks/tabular.py --data DIR --dataset adult --epsilon 1 --sites 4

Trains through the product's own code, with each site's noise added at the site and no trusted aggregator.
`--central` puts all rows at one site instead, as most published methods are run.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TimeElapsedColumn
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parent))

from federation import train_federation
from tabular_data import LOADERS, BenchmarkData, data_folder, load
from tabular_metrics import utility

from models.encoding import encode_table
from models.generator import MixtureGenerator
from models.sampling import sample_cohort
from models.study import Study

MIN_SYNTHETIC = 10_000  # small hospitals: more synthetic patients cost nothing and blur less
FIGURES = {"tvd1": "1-way TVD", "tvd2": "2-way TVD", "tvd3": "3-way TVD", "auc": "AUC"}


def make_study(data: BenchmarkData, *, epsilon: float, delta: float, changes: Sequence[str] = ()) -> Study:
    """The study that the benchmark trains; `changes` are settings such as `warm_start.ridge=0.1`."""
    definition: dict[str, dict[str, object]] = {"measure": {}, "warm_start": {}, "refine": {}}
    for change in changes:
        name, _, value = change.partition("=")
        section, _, field = name.partition(".")
        definition[section][field] = json.loads(value)
    return Study.from_dict(
        {
            "name": f"benchmark-{data.name}",
            "privacy": {"epsilon": epsilon, "delta": delta},
            "table": data.schema.model_dump(mode="json"),
            **definition,
        }
    )


def codes_of(frame: pd.DataFrame, data: BenchmarkData) -> np.ndarray:
    """Rows as codes, for the metric."""
    rows_only = data.schema.model_copy(update={"patient_id": None, "max_records_per_patient": 1})
    return encode_table(frame, rows_only).codes.numpy()


def synthesise(generator: MixtureGenerator, data: BenchmarkData, *, seed: int) -> np.ndarray:
    """As many patients as there are to train on, as a researcher gets them, re-encoded for the metric."""
    num_patients = max(len(data.one_row_each()), MIN_SYNTHETIC)
    frames = sample_cohort(generator, data.schema, num_patients, seed=seed)
    return np.concatenate([codes_of(frame, data) for frame in frames])


def independent_columns(train: np.ndarray, *, seed: int) -> np.ndarray:
    """Each column of the real rows shuffled on its own: perfect margins, nothing else."""
    rng = np.random.default_rng(seed)
    return np.stack([rng.permutation(column) for column in train.T], 1)


def judge(codes: np.ndarray, data: BenchmarkData) -> dict[str, float]:
    """The metric's figures of any rows, as codes, against the held-out patients."""
    label = None if data.schema.label is None else data.schema.names.index(data.schema.label)
    return utility(codes, codes_of(data.test, data), data.schema.cardinalities, label)


def references(data: BenchmarkData) -> dict[str, dict[str, float]]:
    """What no release can be expected to beat, and what any should."""
    train = codes_of(data.one_row_each(), data)
    return {
        "real data": judge(train, data),
        "independent columns": judge(independent_columns(train, seed=0), data),
    }


def one_run(
    study: Study, data: BenchmarkData, held: Sequence[pd.DataFrame], *, seed: int, quorum: int | None = None
) -> dict[str, float]:
    """Train over the sites' tables, draw, judge; `seconds` is the training alone."""
    started = time.perf_counter()
    generator = train_federation(study, held, quorum=quorum)
    seconds = time.perf_counter() - started
    return {**judge(synthesise(generator, data, seed=seed), data), "seconds": seconds}


def run(arguments: argparse.Namespace, console: Console) -> dict[str, list[dict[str, float]]]:
    """All rows of the table, one list entry per seed."""
    data = load(arguments.dataset, data_folder(arguments.data))
    study = make_study(data, epsilon=arguments.epsilon, delta=arguments.delta, changes=arguments.set)
    rows = {name: [figures] for name, figures in references(data).items()}
    tables = data.split(arguments.sites)
    plans = {"one site alone": 1, f"federated, {len(tables)} sites": len(tables)}
    if arguments.no_alone:
        del plans["one site alone"]
    if arguments.central:
        plans["all rows at one site"] = 0
    with Progress(
        SpinnerColumn(),
        *Progress.get_default_columns()[:2],
        TimeElapsedColumn(),
        console=console,
        transient=True,
    ) as bar:
        task = bar.add_task("training", total=len(plans) * arguments.seeds)
        for name, sites in plans.items():
            for seed in range(arguments.seeds):
                bar.update(task, description=f"{name}, seed {seed}")
                tables = data.split(arguments.sites, seed=seed)
                held = [data.train] if sites == 0 else tables[:sites]
                rows.setdefault(name, []).append(one_run(study, data, held, seed=seed))
                bar.advance(task)
    return rows


def show(rows: dict[str, list[dict[str, float]]], title: str, console: Console) -> None:
    """The table, with the spread over seeds where there are several."""
    table = Table(title=title)
    table.add_column("")
    for name in (*FIGURES.values(), "seconds"):
        table.add_column(name, justify="right")
    for name, results in rows.items():
        cells = []
        for figure in FIGURES:
            values = [result[figure] for result in results]
            spread = f" ± {np.std(values, ddof=1):.4f}" if len(values) > 1 else ""
            cells.append(f"{np.mean(values):.4f}{spread}")
        seconds = [result["seconds"] for result in results if "seconds" in result]
        table.add_row(name, *cells, f"{np.mean(seconds):.1f}" if seconds else "")
    console.print(table)


def write_json(rows: dict[str, list[dict[str, float]]], arguments: argparse.Namespace) -> None:
    """The figures, with the options that they came of, to the file of `--json`."""
    settings = {key: str(value) for key, value in vars(arguments).items() if key not in ("json", "data")}
    arguments.json.write_text(json.dumps({"settings": settings, "rows": rows}, indent=1) + "\n")


def main() -> None:
    """Read the command line, run, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, help="folder with the data sets (default: FEDTWIN_DATA)")
    parser.add_argument("--dataset", choices=sorted(LOADERS), default="adult")
    parser.add_argument("--epsilon", type=float, default=1.0)
    parser.add_argument("--delta", type=float, default=1e-5)
    parser.add_argument("--sites", type=int, default=4)
    parser.add_argument("--seeds", type=int, default=1, help="runs with other splits, noise and samples")
    parser.add_argument("--central", action="store_true", help="add a row with all rows at one site")
    parser.add_argument("--no-alone", action="store_true", help="leave out the row of one site alone")
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    parser.add_argument(
        "--set", action="append", default=[], metavar="SECTION.FIELD=VALUE", help="e.g. warm_start.steps=800"
    )
    parser.add_argument("--threads", type=int, default=0, help="of torch; 0 leaves it alone")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    logging.basicConfig(level=logging.ERROR)
    console = Console(width=None if sys.stdout.isatty() else 110)
    rows = run(arguments, console)
    title = f"{arguments.dataset}: epsilon {arguments.epsilon:g}, delta {arguments.delta:g} at each site"
    show(rows, title, console)
    if arguments.json:
        write_json(rows, arguments)


if __name__ == "__main__":
    main()
