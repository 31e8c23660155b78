"""Does the adversarial phase pay? The warm start alone, refining alone, and both, by epsilon and number of sites.

    python benchmarks/ablation.py --data DIR --dataset adult --epsilon 1 3 10 --sites 1 2 4 8 --seeds 2 --json FILE

Trains through the product's own code, each site's noise added at the site, and judges by the tables' metric. The
release is what the product proposes after the paid comparison; "before" and "after" are the warm start and the refined
generator of the same run, between which it chose, and "gain" what it heard, in standard deviations of its noise: above
2 it proposes the refined one. What is in FILE already is kept, and the run goes on from there.
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from in_process import InProcessLab
from parity_data import load_parity
from rich.console import Console
from rich.table import Table
from tabular import FIGURES, judge, make_study, references, synthesise
from tabular_data import LOADERS, BenchmarkData, data_folder, load

from server import round_records, runs

PARITY = "parity"
ALONE_SHARE = 0.05
VARIANTS = {
    "warm start alone": 1.0,
    "refining alone": ALONE_SHARE,
    "both, half measured": 0.5,
    "both, 0.8 measured": 0.8,
    "both, 0.9 measured": 0.9,
}
BEFORE, AFTER = ": its warm start", ": refined"


def settings_of(share: float, extra: list[str]) -> list[str]:
    """The study's settings where the measurement has this share."""
    return [] if share == 1 else [f"measure.budget_share={share}", "refine.rounds=2", *extra]


def one_run(
    data: BenchmarkData, epsilon: float, num_sites: int, share: float, *, seed: int, extra: list[str]
) -> dict[str, dict[str, float]]:
    """Figures of the release, and of what the comparison was between if there was one, by what is added to the name."""
    tables = data.split(num_sites, seed=seed)
    study = make_study(data, epsilon=epsilon, delta=1e-5, changes=settings_of(share, extra))
    federation = study.federation.model_copy(
        update={"quorum": len(tables), "patients_per_site": len(tables[0])}
    )
    study = study.model_copy(update={"federation": federation})
    with tempfile.TemporaryDirectory() as folder:
        lab = InProcessLab(
            Path(folder),
            {f"site-{number}": held for number, held in enumerate(tables, start=1)},
            epsilon=epsilon,
            delta=1e-5,
            patient_id=data.schema.patient_id,
        )
        started = time.perf_counter()
        made = {"": lab.train(study).table}
        seconds = time.perf_counter() - started
        run = runs.list_runs(lab.store)[0]
        heard = {}
        if study.refine.rounds:
            made[BEFORE] = lab.generator(study, run.id, study.measure.exchanges).table
            made[AFTER] = lab.generator(study, run.id, study.num_rounds - 1).table
            compared = round_records.get_round(lab.store, run.id, study.num_rounds).scores
            heard["gain"] = compared["gain"] / compared["gain_noise"]
        lab.store.close()
    found = {}
    for name, generator in made.items():
        codes = synthesise(generator, data, seed=seed)
        found[name] = {**judge(codes, data), "seconds": seconds, **heard}
    return found


def show(rows: dict[str, list[dict[str, float]]], title: str, console: Console) -> None:
    """The table: each release, and beside it what the comparison chose from; with the spread over seeds."""

    def cell(name: str, figure: str) -> str:
        values = [one[figure] for one in rows.get(name, []) if figure in one]
        if not values:
            return ""
        return f"{np.mean(values):.4f}" + (f" ± {np.std(values, ddof=1):.4f}" if len(values) > 1 else "")

    table = Table(title=title)
    for name in (
        "epsilon, sites, what",
        *FIGURES.values(),
        "3-way before, after",
        "AUC before, after",
        "gain",
    ):
        table.add_column(name, justify="left" if name.startswith("epsilon") else "right")
    for name, results in rows.items():
        if name.endswith((BEFORE, AFTER)):
            continue
        pairs = [
            ", ".join(filter(None, (cell(name + part, figure) for part in (BEFORE, AFTER))))
            for figure in list(FIGURES)[-2:]
        ]
        gains = ", ".join(f"{one['gain']:.1f}" for one in results if "gain" in one)
        table.add_row(name, *(cell(name, figure) for figure in FIGURES), *pairs, gains)
    console.print(table)


def main() -> None:
    """Read the command line, run what is not in the file yet, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, help="folder with the data sets (default: FEDTWIN_DATA)")
    parser.add_argument("--dataset", choices=[*sorted(LOADERS), PARITY], default="adult")
    parser.add_argument("--epsilon", type=float, nargs="+", default=[1.0, 3.0, 10.0])
    parser.add_argument("--sites", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--seeds", type=int, default=1, help="runs with other splits, noise and samples")
    parser.add_argument("--only", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.FIELD=VALUE")
    parser.add_argument("--json", type=Path, help="keep all figures in this file, and go on from it")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    logging.basicConfig(level=logging.ERROR)
    console = Console(width=None if sys.stdout.isatty() else 190)
    made_up = arguments.dataset == PARITY
    data = load_parity() if made_up else load(arguments.dataset, data_folder(arguments.data))
    rows: dict[str, list[dict[str, float]]] = {}
    if arguments.json and arguments.json.exists():
        rows = json.loads(arguments.json.read_text())
    for name, figures in references(data).items():
        rows.setdefault(name, [figures])
    plan = itertools.product(arguments.epsilon, arguments.sites, arguments.only, range(arguments.seeds))
    for epsilon, sites, name, seed in plan:
        prefix = f"{epsilon:g}, {sites}, {name}"
        if len(rows.get(prefix, [])) > seed:
            continue
        found = one_run(data, epsilon, sites, VARIANTS[name], seed=seed, extra=arguments.set)
        for suffix, figures in found.items():
            rows.setdefault(prefix + suffix, []).append(figures)
        if arguments.json:
            arguments.json.write_text(json.dumps(rows, indent=1) + "\n")
        told = {suffix: [round(one[k], 4) for k in FIGURES] for suffix, one in found.items()}
        logging.getLogger("ablation").error("%s: %s", prefix, told)
    show(rows, f"{arguments.dataset}: delta 1e-5 at each site", console)


if __name__ == "__main__":
    main()
