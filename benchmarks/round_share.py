"""How much of a real run is not computing: the demo's study and Adult's, over real processes on this machine.

    python benchmarks/round_share.py --study demo
    python benchmarks/round_share.py --study adult --data DIR

Everything is as in production: gateway, SuperLink, a SuperNode and a worker for each site, TLS, the guard's debits.
Of a round, computing is the mechanism at the slowest site and then the coordinator's fit or aggregation; the rest is
quotes, messages, polls, signatures, ledger and disk. On a machine whose cores the sites share they compute at the
same time, and each the longer for it.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import pandas as pd
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parent))

from in_process import InProcessLab
from tabular import make_study
from tabular_data import data_folder, load

from client.processes import site_processes
from models.study import Study
from privacy.cli.supervisor import Supervisor
from server import round_records, runs, studies
from server.api.starter import FlowerStarter
from server.demo.data import load_survey, prepare_patients, split_by_site
from server.demo.parties import STUDY_FILE
from server.processes import coordinator_processes

TARGET = 0.20
ADULT_REFINE = (
    "measure.budget_share=0.8",
    "refine.rounds=2",
    "refine.steps=160",
    "refine.sample_rate=0.03",
)


@dataclass(frozen=True, kw_only=True)
class RoundShare:
    """Where the seconds of one round went.

    Attributes:
        seconds: from asking the sites to the record, of the whole round.
        site: the mechanism at the slowest site.
        coordinator: fitting or aggregating and scoring.
    """

    round: int
    seconds: float
    site: float
    coordinator: float

    @property
    def rest(self) -> float:
        """What is not computing."""
        return max(0.0, self.seconds - self.site - self.coordinator)


def load_study(name: str, data: Path | None, sites: int) -> tuple[Study, dict[str, pd.DataFrame]]:
    """A study and its sites' patients."""
    if name == "demo":
        tables = split_by_site(prepare_patients(load_survey()))
        return Study.from_toml(STUDY_FILE.read_text()), dict(tables)
    loaded = load("adult", data_folder(data))
    tables = {f"site-{k}": table for k, table in enumerate(loaded.split(sites), start=1)}
    return make_study(loaded, epsilon=3.0, delta=1e-5, changes=ADULT_REFINE), tables


def run_study(
    folder: Path, study: Study, tables: Mapping[str, pd.DataFrame]
) -> tuple[list[RoundShare], float, dict[str, int]]:
    """Run it over processes: rounds, seconds of the whole run, bytes of the parts that each round's request has."""
    lab = InProcessLab(
        folder,
        tables,
        epsilon=study.privacy.epsilon,
        delta=study.privacy.delta,
        patient_id=study.table.patient_id,
    )
    registered = studies.register_study(lab.store, study, created_by="benchmark").study
    wanted = {"superlink", "worker", "gateway"}
    coordinator = [spec for spec in coordinator_processes(lab.coordinator) if spec.name in wanted]
    supervisors = [Supervisor(coordinator, lab.coordinator.logs)]
    supervisors += [Supervisor(site_processes(site), site.logs) for site in lab.sites.values()]
    try:
        supervisors[0].start()
        supervisors[0].wait_until_ready(240)
        starter = FlowerStarter(lab.coordinator, lab.store)
        starter.admit_sites()
        for supervisor in supervisors[1:]:
            supervisor.start()
        for supervisor in supervisors[1:]:
            supervisor.wait_until_ready(240)
        run = runs.create_run(lab.store, registered.name, started_by="benchmark")
        starter.start(run.id)
        while (state := runs.get_run(lab.store, run.id)).state in runs.ACTIVE_STATES:
            for supervisor in supervisors:
                supervisor.check()
            time.sleep(0.2)
        if state.state != "completed" or state.started_at is None or state.ended_at is None:
            raise SystemExit(f"the run {state.state}: {state.reason}")
    finally:
        for supervisor in supervisors:
            supervisor.stop()
    recorded = round_records.list_rounds(lab.store, run.id)
    texts = {name: (site.logs / "worker.log").read_text() for name, site in lab.sites.items()}
    home = (lab.coordinator.logs / "worker.log").read_text()
    shares = [
        RoundShare(
            round=one.round,
            seconds=one.seconds,
            site=max(_computed(text, rf"\w+ round {one.round}: ") for text in texts.values()),
            coordinator=_computed(home, rf"run {run.id}: round {one.round}: "),
        )
        for one in recorded
    ]
    sizes = {
        "generator": len(lab.store.load(recorded[-1].arrays["generator"])),
        "study": len(registered.encoded),
    }
    lab.store.close()
    return shares, (state.ended_at - state.started_at).total_seconds(), sizes


def _computed(log: str, before: str) -> float:
    found = re.findall(before + r"computed ([0-9.]+) s", log)
    if not found:
        raise SystemExit(f"no line {before!r} in a worker's log")
    return float(found[-1])


def main() -> None:
    """Read the command line, run, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--study", choices=("demo", "adult"), default="demo")
    parser.add_argument("--data", type=Path, help="folder with the data sets (default: FEDTWIN_DATA)")
    parser.add_argument("--sites", type=int, default=4, help="of adult")
    parser.add_argument("--json", type=Path, help="write the figures here as well")
    arguments = parser.parse_args()
    console = Console(width=None if sys.stdout.isatty() else 110)
    study, tables = load_study(arguments.study, arguments.data, arguments.sites)
    with tempfile.TemporaryDirectory() as folder, console.status(f"{study.name}: {len(tables)} sites"):
        shares, seconds, sizes = run_study(Path(folder), study, tables)
    computing = sum(one.site + one.coordinator for one in shares)
    of_rounds = sum(one.rest for one in shares) / sum(one.seconds for one in shares)
    of_run = 1 - computing / seconds
    if arguments.json:
        figures = {
            "study": study.name,
            "rounds": [asdict(one) for one in shares],
            "run_seconds": seconds,
            "share_of_rounds": of_rounds,
            "share_of_run": of_run,
            "target": TARGET,
            "bytes": sizes,
        }
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n")
    show(console, study, shares, sizes)
    console.print(
        f"Not computing: {of_rounds:.0%} of the rounds, {of_run:.0%} of the run from its start to its release "
        f"({seconds:.1f} s, with the quotes and the last countersignatures)."
    )
    sys.exit(0 if of_rounds <= TARGET else 1)


def show(console: Console, study: Study, shares: list[RoundShare], sizes: Mapping[str, int]) -> None:
    """The table of rounds, and what a request holds."""
    table = Table(title=f"Seconds of {study.name}'s rounds")
    for column in ("round", "all", "slowest site computes", "coordinator computes", "rest", "share"):
        table.add_column(column, justify="right")
    for one in shares:
        cells = [f"{value:.2f}" for value in (one.seconds, one.site, one.coordinator, one.rest)]
        table.add_row(str(one.round), *cells, f"{one.rest / one.seconds:.0%}")
    console.print(table)
    if study.refine.rounds:
        console.print(
            f"A refine request holds the generator's {sizes['generator']:,} bytes, new in each round, and the study's "
            f"{sizes['study']:,}, which travel once; the comparison's holds two generators."
        )


if __name__ == "__main__":
    main()
