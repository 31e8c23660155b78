"""Every table at every epsilon, as a Markdown table and a figure: what docs/benchmarks.md shows.

    python benchmarks/tabular_suite.py --data DIR --seeds 3 --json FILE --figure docs/images/tabular.svg

Each run is written to the file as soon as it is done, and runs that are there already are not repeated: a suite
that was interrupted goes on where it stopped, and `--print-only` prints what there is. Where a site's patients
are too few for its noise, so that the coordinator cannot tell its moments from nothing, the run is repeated
without it and the table says so. Adult and Diabetes are
dealt to four sites at random, heart disease to its hospitals, eICU to its regions.
"""

from __future__ import annotations

import argparse
import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent))

from tabular import FIGURES, make_study, one_run, references
from tabular_data import LOADERS, data_folder, load
from tabular_plots import Figure, Panel

from server.round_exchange import RoundFailedError

EPSILONS = (0.5, 1.0, 3.0, 10.0)
SITES, CENTRAL = "sites", "central"
PLANS = {SITES: "noise at each site, which trust nobody", CENTRAL: "all rows at one site"}
TITLES = {"adult": "Adult", "diabetes": "Diabetes 130-US", "heart": "Heart disease", "eicu": "eICU demo"}
Run = dict[str, float | str]


class Results:
    """The file with all runs.

    Args:
        path: of the JSON file; made when there is none.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.references: dict[str, dict[str, dict[str, float]]] = {}
        self.runs: list[Run] = []
        if path.exists():
            stored = json.loads(path.read_text())
            self.references, self.runs = stored["references"], stored["runs"]

    def has(self, dataset: str, epsilon: float, plan: str, seed: int) -> bool:
        """Whether this run is done."""
        return any(
            (run["dataset"], run["epsilon"], run["plan"], run["seed"]) == (dataset, epsilon, plan, seed)
            for run in self.runs
        )

    def write(self) -> None:
        """Write all, so that a reader never sees half a file."""
        partial = self.path.with_suffix(".part")
        partial.write_text(json.dumps({"references": self.references, "runs": self.runs}, indent=1) + "\n")
        partial.replace(self.path)

    def values(self, dataset: str, plan: str, epsilon: float, figure: str) -> list[float]:
        """One figure of all runs of one setting."""
        return [
            float(run[figure])
            for run in self.runs
            if (run["dataset"], run["plan"], run["epsilon"]) == (dataset, plan, epsilon)
        ]


def planned(arguments: argparse.Namespace) -> Iterator[tuple[str, float, str, int]]:
    """All runs, those first that a reader misses most."""
    for seed in range(arguments.seeds):
        for plan in (SITES, CENTRAL) if arguments.central else (SITES,):
            for dataset in arguments.datasets:
                for epsilon in arguments.epsilons:
                    yield dataset, epsilon, plan, seed


def run_all(arguments: argparse.Namespace, results: Results) -> None:
    """Do what the file lacks."""
    folder = data_folder(arguments.data)
    tables = {name: load(name, folder) for name in arguments.datasets}
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout
    for name, data in tables.items():
        if name not in results.references:
            results.references[name] = references(data)
            results.write()
    for dataset, epsilon, plan, seed in planned(arguments):
        if results.has(dataset, epsilon, plan, seed):
            continue
        data = tables[dataset]
        study = make_study(data, epsilon=epsilon, delta=arguments.delta)
        held = data.split(arguments.sites, seed=seed) if plan == SITES else [data.train]
        setting = {"dataset": dataset, "epsilon": epsilon, "plan": plan, "seed": seed, "fewer": 0}
        try:
            figures = one_run(study, data, held, seed=seed)
        except RoundFailedError as error:
            print(f"{dataset}: {error}; once more without", flush=True)
            figures = one_run(study, data, held, seed=seed, quorum=1)
            setting["fewer"] = 1
        results.runs.append({**setting, "sites": len(held), "commit": commit.strip(), **figures})
        results.write()
        print(
            f"{dataset:9s} epsilon {epsilon:4g}  {plan:9s}  seed {seed}  2-way {figures['tvd2']:.4f}",
            flush=True,
        )


def mean_and_spread(values: list[float], digits: int) -> str:
    """`0.0322 ± 0.0001`; no spread for one run, a dash for none."""
    if not values:
        return "—"
    spread = f" ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else ""
    return f"{np.mean(values):.{digits}f}{spread}"


def markdown(results: Results, dataset: str) -> str:
    """The table of one data set."""
    head = ["", *FIGURES.values(), "runs"]
    lines = ["|" + "|".join(f" {name} " if name else " " for name in head) + "|", "|" + "---|" * len(head)]
    digits = {name: 3 if name == "auc" else 4 for name in FIGURES}
    for name, figures in results.references[dataset].items():
        lines.append(f"| {name} | " + " | ".join(f"{figures[f]:.{digits[f]}f}" for f in FIGURES) + " | |")
    for plan in (SITES, CENTRAL):
        for epsilon in EPSILONS:
            found = [results.values(dataset, plan, epsilon, figure) for figure in FIGURES]
            if found[0]:
                cells = [mean_and_spread(v, digits[f]) for f, v in zip(FIGURES, found, strict=True)]
                name = f"epsilon {epsilon:g}, {count_of_sites(results, dataset) if plan == SITES else PLANS[plan]}"
                if any(fewer := results.values(dataset, plan, epsilon, "fewer")):
                    name += f" (in {sum(fewer):g} without a site of too few patients)"
                lines.append(f"| {name} | " + " | ".join(cells) + f" | {len(found[0])} |")
    return "\n".join(lines)


def count_of_sites(results: Results, dataset: str) -> str:
    """`4 sites`."""
    return f"{next(r['sites'] for r in results.runs if (r['dataset'], r['plan']) == (dataset, SITES))} sites"


def figure_of(results: Results) -> str:
    """All tables side by side: pairs, triples and the classifier over epsilon."""
    figures = {
        "tvd2": "2-way TVD (lower is better)",
        "tvd3": "3-way TVD (lower is better)",
        "auc": "AUC (higher is better)",
    }
    names = [name for name in LOADERS if name in results.references]
    panels = []
    for figure, axis in figures.items():
        for dataset in names:
            lines = {
                words: {e: v for e in EPSILONS if (v := results.values(dataset, plan, e, figure))}
                for plan, words in PLANS.items()
            }
            levels = {name: values[figure] for name, values in results.references[dataset].items()}
            panels.append(Panel(title=TITLES[dataset], axis=axis, lines=lines, levels=levels))
    return Figure(panels, columns=len(names)).svg("What a release is worth over epsilon, on four real tables")


def main() -> None:
    """Read the command line, run, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder with the data sets (default: FEDTWIN_DATA)")
    parser.add_argument("--datasets", nargs="+", choices=sorted(LOADERS), default=list(LOADERS))
    parser.add_argument("--epsilons", nargs="+", type=float, default=list(EPSILONS))
    parser.add_argument("--delta", type=float, default=1e-5)
    parser.add_argument("--sites", type=int, default=4, help="where the table has no sites of its own")
    parser.add_argument("--seeds", type=int, default=3, help="runs with other splits, noise and samples")
    parser.add_argument("--central", action="store_true", help="also with all rows at one site")
    parser.add_argument("--json", type=Path, required=True, help="file with the runs, read and continued")
    parser.add_argument("--figure", type=Path, help="write the figure to this SVG file")
    parser.add_argument("--print-only", action="store_true", help="train nothing")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    logging.basicConfig(level=logging.ERROR)
    results = Results(arguments.json)
    if not arguments.print_only:
        run_all(arguments, results)
    for dataset in results.references:
        print(f"\n{TITLES[dataset]}, delta {arguments.delta:g}:\n\n{markdown(results, dataset)}")
    if arguments.figure:
        arguments.figure.write_text(figure_of(results))


if __name__ == "__main__":
    main()
