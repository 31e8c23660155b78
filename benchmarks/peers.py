"""The peers on a table of ours, central, beside ours: the same rows, codes, budget and metric.

    python benchmarks/peers.py --data DIR --epsilon 1 --peers mst ctgan aim --ours --json FILE

The training rows go to the peer as codes of the study's schema; its synthetic rows come back as codes and are
judged as ours are. Each peer runs in an environment of its own (`peers_environment.py`), which the first run
makes. AIM takes hours: it writes down every round, goes on with `--resume`, ends early with `--limit-minutes`, and
`--judge-only` judges whatever rows there are, saying how far it came.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
from pathlib import Path

import numpy as np
import torch
from rich.console import Console

sys.path.insert(0, str(Path(__file__).parent))

from peers_environment import HOME, run_in
from tabular import codes_of, judge, make_study, one_run, references, show, write_json
from tabular_data import LOADERS, BenchmarkData, data_folder, load

PEERS = ("mst", "ctgan", "aim")
NAMES = {"mst": "MST", "ctgan": "DP-CTGAN"}


def write_table(data: BenchmarkData, folder: Path) -> None:
    """What a peer reads: one row of each patient, as codes, and the columns with their levels."""
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / "codes.npy", codes_of(data.one_row_each(), data))
    levels = dict(zip(data.schema.names, map(int, data.schema.cardinalities), strict=True))
    (folder / "columns.json").write_text(json.dumps(levels))


def run_peer(peer: str, folder: Path, arguments: argparse.Namespace) -> float:
    """Let the peer write its rows; the seconds that it took."""
    options = ["--folder", str(folder), "--epsilon", str(arguments.epsilon), "--delta", str(arguments.delta)]
    started = time.perf_counter()
    if peer == "mst":
        run_in("pgm", "peers_mst.py", *options)
    elif peer == "ctgan":
        run_in("smartnoise", "peers_ctgan.py", *options)
    else:
        options += ["--ways", str(arguments.aim_ways), "--max-model-mb", str(arguments.aim_model_mb)]
        options += ["--resume"] if arguments.resume else []
        options += ["--limit-minutes", str(arguments.limit_minutes)] if arguments.limit_minutes else []
        run_in("pgm", "peers_aim.py", *options)
    return time.perf_counter() - started


def label_of(peer: str, folder: Path) -> tuple[str, dict[str, float]]:
    """The row's name and, of AIM, its own count of seconds and how far it came."""
    if peer != "aim":
        return NAMES[peer], {}
    state = json.loads((folder / "aim-drawn.json").read_text())
    words = "" if state["done"] else f", stopped at {state['share_spent']:.0%} of its budget"
    return f"AIM, {state['rounds']} rounds{words}", {"seconds": state["seconds"]}


def main() -> None:
    """Read the command line, run, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder with the data sets (default: FEDTWIN_DATA)")
    parser.add_argument("--dataset", choices=sorted(LOADERS), default="adult")
    parser.add_argument("--epsilon", type=float, default=1.0)
    parser.add_argument("--delta", type=float, default=1e-5)
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=["mst", "ctgan"])
    parser.add_argument("--ours", action="store_true", help="train ours beside them: one place and the sites")
    parser.add_argument("--sites", type=int, default=4)
    parser.add_argument("--seeds", type=int, default=1, help="runs of ours, and of MST")
    parser.add_argument(
        "--judge-only", action="store_true", help="run no peer: judge the rows that are there"
    )
    parser.add_argument("--resume", action="store_true", help="let AIM go on where it stopped")
    parser.add_argument("--limit-minutes", type=float, help="end AIM after so long, and judge what it has")
    parser.add_argument("--aim-ways", type=int, default=2, choices=(2, 3), help="of AIM's workload")
    parser.add_argument("--aim-model-mb", type=float, default=80.0, help="AIM's largest model")
    parser.add_argument("--folder", type=Path, help="for the peers' files (default: under benchmarks/.peers)")
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    logging.basicConfig(level=logging.ERROR)
    console = Console(width=None if sys.stdout.isatty() else 110)
    data = load(arguments.dataset, data_folder(arguments.data))
    folder = arguments.folder or HOME / "runs" / f"{arguments.dataset}-epsilon-{arguments.epsilon:g}"
    write_table(data, folder)
    rows = {name: [figures] for name, figures in references(data).items()}
    for peer in arguments.peers:
        for _ in range(arguments.seeds if peer == "mst" else 1):
            seconds = {} if arguments.judge_only else {"seconds": run_peer(peer, folder, arguments)}
            name, known = label_of(peer, folder)
            figures = judge(np.load(folder / f"{peer}.npy"), data)
            rows.setdefault(name, []).append({**figures, **seconds, **known})
    if arguments.ours:
        study = make_study(data, epsilon=arguments.epsilon, delta=arguments.delta)
        for seed in range(arguments.seeds):
            sites = data.split(arguments.sites, seed=seed)
            ours = {"ours, one place": [data.train], f"ours, {len(sites)} sites that trust nobody": sites}
            for name, held in ours.items():
                rows.setdefault(name, []).append(one_run(study, data, held, seed=seed))
    title = f"{arguments.dataset}: epsilon {arguments.epsilon:g}, delta {arguments.delta:g}"
    show(rows, title, console)
    if arguments.json:
        write_json(rows, arguments)


if __name__ == "__main__":
    main()
