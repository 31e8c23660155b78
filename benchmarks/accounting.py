"""Accounting: time per composition, distance between the two accountants, and N random settings.

    python benchmarks/accounting.py                    the table, and 100 random settings
    python benchmarks/accounting.py --settings 10000   the property figure of docs/assurance

Each random setting is composed by Opacus' PRV and dp-accounting's PLD, and once more with an event added.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import random
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

from rich.console import Console
from rich.progress import track
from rich.table import Table

from privacy.accounting import AccountingError, group_events, pld_epsilon, prv_epsilon, spend_of
from privacy.budget import PrivacyBudget
from privacy.calibration import calibrate_phases
from privacy.events import MechanismEvent

PLANS = {
    "measure alone, sigma 5": [(5.0, 1.0, 1)],
    "measure 5, then 1,000 steps at 1 %": [(5.0, 1.0, 1), (1.0, 0.01, 1000)],
    "measure 5, then 3,200 steps at 5 %": [(5.0, 1.0, 1), (1.5, 0.05, 3200)],
    "measure 11, then 20,000 steps at 1 %": [(11.3, 1.0, 1), (1.95, 0.01, 20_000)],
    "four settings over four runs": [(8.0, 1.0, 1), (3.0, 0.05, 50), (2.0, 0.1, 100), (4.0, 0.02, 1000)],
}


def event(sigma: float, rate: float, steps: int) -> MechanismEvent:
    kind = "gaussian" if rate == 1 else "subsampled_gaussian"
    return MechanismEvent(phase="refine", kind=kind, noise_multiplier=sigma, sample_rate=rate, steps=steps)


def random_events(source: random.Random, *, max_steps: int = 5000) -> list[MechanismEvent]:
    """One to four mechanisms over the ranges that studies use, and well beyond."""
    return [
        event(
            10 ** source.uniform(-0.3, 2),
            min(1.0, 10 ** source.uniform(-4, 0.3)),
            round(max_steps ** source.random()),
        )
        for _ in range(source.randint(1, 4))
    ]


def print_plans(console: Console) -> list[dict[str, object]]:
    table = Table("events (delta 1e-5)", "PRV", "PLD", "apart", "both, s", "PRV, s", "PLD, s")
    figures: list[dict[str, object]] = []
    spend_of([event(7.7, 1.0, 1)], delta=1e-5)  # imports
    for name, groups in PLANS.items():
        events = [event(*group) for group in groups]
        both, spend = timed(lambda events=events: spend_of(events, delta=1e-5))
        prv, _ = timed(lambda events=events: prv_epsilon(group_events(events), 1e-5))
        pld, _ = timed(lambda events=events: pld_epsilon(group_events(events), 1e-5, interval=1.01e-3))
        table.add_row(
            name,
            f"{spend.epsilon:.4f}",
            f"{spend.epsilon_pld:.4f}",
            f"{spend.epsilon - spend.epsilon_pld:.4f}",
            *(f"{seconds:.2f}" for seconds in (both, prv, pld)),
        )
        figures.append(
            {
                "plan": name,
                "prv": spend.epsilon,
                "pld": spend.epsilon_pld,
                "seconds": both,
                "over_prv": both / prv,
            }
        )
    console.print(table)
    return figures


def print_calibration(console: Console) -> None:
    table = Table("budget, delta 1e-5", "measure", "refine", "spent of it", "s")
    refine = [event(1.0, 0.05, 80)] * 40
    for epsilon in (0.5, 1.0, 4.0, 10.0):
        seconds, plan = timed(
            lambda epsilon=epsilon: calibrate_phases(
                budget=PrivacyBudget(epsilon=epsilon, delta=1e-5),
                measure=[event(1.0, 1.0, 1)],
                refine=refine,
                measure_share=0.5,
            )
        )
        spent = plan.spend.epsilon / epsilon
        noise = (str(plan.measure_noise_multiplier), str(plan.refine_noise_multiplier))
        table.add_row(f"epsilon {epsilon:g}", *noise, f"{spent:.2%}", f"{seconds:.2f}")
    console.print(table)


@dataclass(frozen=True)
class Checked:
    """What one random setting gave; `apart` is None where it was refused or failed."""

    seconds: float
    apart: float | None = None
    fall: float | None = None
    failure: str = ""


def check_setting(setting: tuple[list[MechanismEvent], float, MechanismEvent | None]) -> Checked:
    """One setting: its events, delta, and for some one event more."""
    events, delta, added = setting
    started = time.perf_counter()
    try:
        spend = spend_of(events, delta=delta)
        seconds = time.perf_counter() - started
        fall = None if added is None else spend.epsilon - spend_of([*events, added], delta=delta).epsilon
    except AccountingError as error:
        told = "" if "beyond 100" in str(error) else str(error)
        return Checked(time.perf_counter() - started, failure=told)
    return Checked(seconds, apart=spend.epsilon - spend.epsilon_pld, fall=fall)


def check_settings(console: Console, num_settings: int, *, seed: int, workers: int) -> dict[str, object]:
    source = random.Random(seed)
    settings = []
    for number in range(num_settings):
        events, delta = random_events(source), 10 ** source.uniform(-9, -4)
        added = event(source.uniform(1, 100), 10 ** source.uniform(-3.5, 0), 1)
        settings.append((events, delta, added if number % 4 == 0 else None))
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        checked = list(
            track(
                pool.imap_unordered(check_setting, settings),
                "settings",
                total=num_settings,
                console=console,
            )
        )
    apart = [one.apart for one in checked if one.apart is not None]
    seconds = sorted(one.seconds for one in checked if one.apart is not None)
    falls = [one.fall for one in checked if one.fall is not None]
    failures = [one.failure for one in checked if one.failure]
    refused = num_settings - len(apart) - len(failures)
    console.print(
        f"{num_settings} random settings (seed {seed}): {refused} cost more than epsilon 100 and were refused"
    )
    console.print(f"accounted: {len(apart)}; failures: {len(failures)}")
    console.print(f"PRV - PLD: smallest {min(apart):.5f}, largest {max(apart):.5f} (bound 0.02)")
    console.print(
        f"seconds per setting: median {statistics.median(seconds):.2f}, 95 % below "
        f"{seconds[math.ceil(0.95 * len(seconds)) - 1]:.2f}, largest {seconds[-1]:.2f}"
    )
    console.print(f"an event added ({len(falls)} times): epsilon fell by at most {max(0.0, *falls):.7f}")
    for failure in failures:
        console.print(f"[red]{failure}")
    return {
        "settings": num_settings,
        "seed": seed,
        "accounted": len(apart),
        "refused": refused,
        "failures": failures,
        "apart": [min(apart), max(apart)],
        "largest_fall": max(0.0, *falls),
    }


def timed(function):
    started = time.perf_counter()
    result = function()
    return time.perf_counter() - started, result


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--settings", type=int, default=100, help="random settings to check")
    parser.add_argument("--seed", type=int, default=20261122)
    parser.add_argument("--workers", type=int, default=1, help="processes that the settings are spread over")
    parser.add_argument("--json", type=Path, help="write the figures here as well")
    arguments = parser.parse_args()
    console = Console(width=120)
    plans = print_plans(console)
    print_calibration(console)
    found = check_settings(console, arguments.settings, seed=arguments.seed, workers=arguments.workers)
    if arguments.json:
        arguments.json.write_text(json.dumps({"plans": plans, "random": found}, indent=1))
    return 1 if found["failures"] else 0


if __name__ == "__main__":
    raise SystemExit(main())
