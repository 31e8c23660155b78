"""What one malicious site of four does to a release, under each rule of aggregation, and what robustness costs.

    python benchmarks/malicious.py --data DIR --epsilon 3

Every release is trained through the product's own code: homes, guard, signed receipts, acceptance, round loop. The
hostile site has valid keys and signs its lies. "dropped" counts the rounds in which nothing of it counts: its reply was
thrown away, or it was not asked any more after one that was.
`--dataset heart` takes the four hospitals of UCI heart disease, whose patients differ a lot, without an attack.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TimeElapsedColumn
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parent))

from hostile_site import ATTACKS, CLAIM, FLIPPED, PASSING, HostileSite, flip_labels
from in_process import InProcessLab
from tabular import FIGURES, codes_of, make_study, synthesise
from tabular_data import BenchmarkData, data_folder, load
from tabular_metrics import utility

from models.study import Study
from server import round_records, runs

RULES = ("mean", "median", "trimmed-mean")
HOSTILE = "site-4"
REFINE = (
    "measure.budget_share=0.8",
    "refine.rounds=2",
    "refine.steps=400",
    "refine.sample_rate=0.03",
)


def plan(attacks: tuple[str, ...], rules: tuple[str, ...]) -> Iterator[tuple[str, str, int]]:
    """(attack, rule, sites) of each row; no attack is ""."""
    yield from (("", rule, 4) for rule in rules)
    yield from (("", rule, 3) for rule in rules)
    for attack in attacks:
        # What is dropped leaves three honest sites to every rule.
        yield from ((attack, rule, 4) for rule in (rules if attack in PASSING else rules[:1]))


def train(
    study: Study, data: BenchmarkData, tables: Mapping[str, pd.DataFrame], attack: str, seed: int
) -> dict[str, float]:
    """One release's figures on the held-out patients, and how often the hostile site was dropped."""
    label = data.schema.label
    assert label is not None
    held = dict(tables)
    if attack in (FLIPPED, CLAIM):
        held[HOSTILE] = flip_labels(held[HOSTILE], label)
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        lab = InProcessLab(Path(folder), held, epsilon=study.privacy.epsilon, delta=study.privacy.delta)
        if attack:
            lab.federation.sites[HOSTILE] = HostileSite(lab.sites[HOSTILE], attack=attack)
        generator = lab.train(study).table
        rounds = round_records.list_rounds(lab.store, runs.list_runs(lab.store)[0].id)
        counted = sum(
            spend.site == HOSTILE and spend.outcome == "accepted" for one in rounds for spend in one.spends
        )
        lab.store.close()
    test, cards = codes_of(data.test, data), data.schema.cardinalities
    figures = utility(synthesise(generator, data, seed=seed), test, cards, data.schema.names.index(label))
    dropped = len(rounds) - counted if attack else 0
    return {**figures, "dropped": dropped, "rounds": len(rounds), "seconds": time.perf_counter() - started}


def main() -> None:
    """Read the command line, run, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="folder with the data sets (default: FEDTWIN_DATA)")
    parser.add_argument("--dataset", choices=("adult", "heart"), default="adult")
    parser.add_argument("--epsilon", type=float, default=3.0)
    parser.add_argument("--delta", type=float, default=1e-5)
    parser.add_argument("--seeds", type=int, default=1, help="runs with other splits, noise and samples")
    parser.add_argument("--rows", type=int, default=0, help="at most so many training rows; 0 takes all")
    parser.add_argument("--attack", action="append", choices=ATTACKS, help="default: all, none for heart")
    parser.add_argument("--rule", action="append", choices=RULES, help="default: all")
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    logging.basicConfig(level=logging.CRITICAL)
    logging.getLogger("fedtwin").setLevel(logging.CRITICAL)  # refusals are what is asked for here
    console = Console(width=None if sys.stdout.isatty() else 110)
    data = load(arguments.dataset, data_folder(arguments.data))
    if arguments.rows:
        few = np.random.default_rng(0).permutation(len(data.train))[: arguments.rows]
        site = None if data.site is None else data.site[few]
        data = BenchmarkData(data.name, data.schema, data.train.iloc[few], data.test, site, data.test_site)
    attacks = tuple(arguments.attack or (ATTACKS if arguments.dataset == "adult" else ()))
    rows = list(plan(attacks, tuple(arguments.rule or RULES)))
    found: dict[tuple[str, str, int], list[dict[str, float]]] = {}
    with Progress(
        SpinnerColumn(),
        *Progress.get_default_columns(),
        TimeElapsedColumn(),
        console=console,
        transient=True,
    ) as bar:
        task = bar.add_task("training", total=len(rows) * arguments.seeds)
        for seed in range(arguments.seeds):
            tables = data.split(4, seed=seed)
            for attack, rule, sites in rows:
                bar.update(task, description=f"{attack or 'no attack'}, {rule}")
                base = make_study(data, epsilon=arguments.epsilon, delta=arguments.delta, changes=REFINE)
                settings = base.federation.model_copy(update={"quorum": 3, "aggregation": rule})
                study = base.model_copy(update={"federation": settings})
                named = {f"site-{k}": table for k, table in enumerate(tables[:sites], start=1)}
                figures = train(study, data, named, attack, seed)
                found.setdefault((attack, rule, sites), []).append(figures)
                if not console.is_terminal:
                    told = " ".join(f"{name} {value:.4g}" for name, value in figures.items())
                    print(
                        f"{attack or 'no attack'}, {sites} sites, {rule}: {told}", file=sys.stderr, flush=True
                    )
                bar.advance(task)
    if arguments.json:
        figures = {
            "dataset": arguments.dataset,
            "epsilon": arguments.epsilon,
            "rows": [
                {"attack": attack, "rule": rule, "sites": sites, "runs": results}
                for (attack, rule, sites), results in found.items()
            ],
        }
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n")
    show(found, f"{arguments.dataset}: epsilon {arguments.epsilon:g} at each site", console)


def show(found: Mapping[tuple[str, str, int], list[dict[str, float]]], title: str, console: Console) -> None:
    """The table, with the spread over seeds where there are several."""
    table = Table(title=title)
    for name in ("sites", "rule", "dropped"):
        table.add_column(name)
    shown = {name: text for name, text in FIGURES.items() if name != "tvd1"}
    for text in shown.values():
        table.add_column(text, justify="right")
    for (attack, rule, sites), results in found.items():
        cells = []
        for figure in shown:
            values = [one[figure] for one in results]
            spread = f" ± {np.std(values, ddof=1):.4f}" if len(values) > 1 else ""
            cells.append(f"{np.mean(values):.4f}{spread}")
        dropped = f"{results[0]['dropped']:.0f} of {results[0]['rounds']:.0f}" if attack else ""
        table.add_row(f"3 honest, 1 {attack}" if attack else f"{sites} honest", rule, dropped, *cells)
    console.print(table)


if __name__ == "__main__":
    main()
