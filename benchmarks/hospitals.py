"""Does the shared release serve each hospital's own patients better than that hospital's own release?

    python benchmarks/hospitals.py --data DIR --epsilon 5 --seeds 3

UCI heart disease, four hospitals of 86 to 212 training patients each, whose patients differ a lot. The shared
release is taken in two ways: as it is, and from a study whose release tells hospitals apart (`table.site`), conditioned
on the hospital. Every release is trained through the product at the same epsilon; each is judged on every hospital's
held-out patients.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parent))

from federation import train_federation
from tabular import codes_of, make_study, synthesise, write_json
from tabular_data import BenchmarkData, data_folder, load
from tabular_metrics import utility

from models.generator import MixtureGenerator
from models.sampling import sample_cohort
from models.schema import CategoricalColumn
from models.study import Study

SHARED, CONDITIONED = "shared", "shared, conditioned on the hospital"


def told_apart(study: Study, sites: Sequence[str]) -> Study:
    """The same study with a release that says of which site a patient is."""
    column = CategoricalColumn(kind="categorical", name="hospital", categories=tuple(sites))
    table = study.table.model_copy(update={"columns": (*study.table.columns, column), "site": column.name})
    return Study.from_dict({**study.to_dict(), "table": table.model_dump(mode="json", exclude_none=True)})


def conditioned(
    study: Study, data: BenchmarkData, site: str, generator: MixtureGenerator, seed: int
) -> np.ndarray:
    """Synthetic patients of one hospital, as codes without that column."""
    condition = {"column": study.table.site, "op": "==", "value": site}
    frames = sample_cohort(generator, study.table, 10_000, seed=seed, conditions=[condition])
    return np.concatenate([codes_of(frame, data) for frame in frames])


def judge(synthetic: np.ndarray, data: BenchmarkData) -> dict[str, dict[str, float]]:
    """Figures on each hospital's held-out patients."""
    test = codes_of(data.test, data)
    assert data.test_site is not None
    assert data.schema.label is not None
    label = data.schema.names.index(data.schema.label)
    return {
        site: utility(synthetic, test[data.test_site == site], data.schema.cardinalities, label)
        for site in np.unique(data.test_site)
    }


def main() -> None:
    """Read the command line, run, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path)
    parser.add_argument("--epsilon", type=float, default=5.0)
    parser.add_argument("--delta", type=float, default=1e-3, help="below 1 over the patients of a site")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    console = Console(width=None if sys.stdout.isatty() else 110)
    data = load("heart", data_folder(arguments.data))
    assert data.site is not None
    study = make_study(data, epsilon=arguments.epsilon, delta=arguments.delta)
    tables = dict(zip(np.unique(data.site), data.split(0), strict=True))
    named = told_apart(study, list(tables))
    found: dict[tuple[str, str], list[dict[str, float]]] = {}
    for seed in track(range(arguments.seeds), "training", console=console, transient=True):
        held = {**{site: [table] for site, table in tables.items()}, SHARED: list(tables.values())}
        for release, sources in held.items():
            synthetic = synthesise(train_federation(study, sources), data, seed=seed)
            for site, figures in judge(synthetic, data).items():
                found.setdefault((release, site), []).append(figures)
        generator = train_federation(named, tables)
        for site in tables:
            synthetic = conditioned(named, data, site, generator, seed)
            found.setdefault((CONDITIONED, site), []).append(judge(synthetic, data)[site])
    table = Table(
        title=f"heart disease, epsilon {arguments.epsilon:g}, {arguments.seeds} runs: mean ± spread"
    )
    for name in ("held-out patients of", "release", "2-way TVD", "3-way TVD", "AUC"):
        table.add_column(name)
    for site in tables:
        for release in (site, SHARED, CONDITIONED):
            figures = found[release, site]
            cells = [
                f"{np.mean([one[name] for one in figures]):.3f} ± {np.std([one[name] for one in figures]):.3f}"
                for name in ("tvd2", "tvd3", "auc")
            ]
            table.add_row(site, "its own" if release == site else release, *cells)
    console.print(table)
    if arguments.json:
        write_json({f"{site}: {release}": runs for (release, site), runs in found.items()}, arguments)


if __name__ == "__main__":
    main()
