"""Accounting: time per composition, distance between the two accountants, and N random settings.

    python benchmarks/accounting.py                    the table, and 100 random settings
    python benchmarks/accounting.py --settings 10000   the property figure of docs/assurance

Each random setting is composed by Opacus' PRV and dp-accounting's PLD, and once more with an event added.
"""

from __future__ import annotations

import argparse
import math
import os
import random
import statistics
import time

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


def print_plans(console: Console) -> None:
    table = Table("events (delta 1e-5)", "PRV", "PLD", "apart", "both, s", "PRV, s", "PLD, s")
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
    console.print(table)


def print_calibration(console: Console) -> None:
    table = Table("budget, delta 1e-5", "measure", "refine", "spent of it", "s")
    refine = [event(1.0, 0.05, 80)] * 40
    for epsilon in (0.5, 1.0, 4.0, 10.0):
        seconds, plan = timed(
            lambda epsilon=epsilon: calibrate_phases(
                budget=PrivacyBudget(epsilon=epsilon, delta=1e-5),
                measure=event(1.0, 1.0, 1),
                refine=refine,
                measure_share=0.5,
            )
        )
        spent = plan.spend.epsilon / epsilon
        noise = (str(plan.measure_noise_multiplier), str(plan.refine_noise_multiplier))
        table.add_row(f"epsilon {epsilon:g}", *noise, f"{spent:.2%}", f"{seconds:.2f}")
    console.print(table)


def check_settings(console: Console, num_settings: int, *, seed: int) -> int:
    source = random.Random(seed)
    apart, seconds, refused, failures, falls = [], [], 0, [], []
    for number in track(range(num_settings), "settings", console=console):
        events = random_events(source)
        delta = 10 ** source.uniform(-9, -4)
        added = event(source.uniform(1, 100), 10 ** source.uniform(-3.5, 0), 1)
        try:
            elapsed, spend = timed(lambda events=events, delta=delta: spend_of(events, delta=delta))
            apart.append(spend.epsilon - spend.epsilon_pld)
            seconds.append(elapsed)
            if number % 4 == 0:
                falls.append(spend.epsilon - spend_of([*events, added], delta=delta).epsilon)
        except AccountingError as error:
            if "beyond 100" in str(error):
                refused += 1
            else:
                failures.append(error)
    console.print(
        f"{num_settings} random settings (seed {seed}): {refused} cost more than epsilon 100 and were refused"
    )
    console.print(f"accounted: {len(apart)}; failures: {len(failures)}")
    console.print(f"PRV - PLD: smallest {min(apart):.5f}, largest {max(apart):.5f} (bound 0.02)")
    console.print(
        f"seconds per setting: median {statistics.median(seconds):.2f}, 95 % below "
        f"{sorted(seconds)[math.ceil(0.95 * len(seconds)) - 1]:.2f}, largest {max(seconds):.2f}"
    )
    console.print(f"an event added ({len(falls)} times): epsilon fell by at most {max(0.0, *falls):.7f}")
    for error in failures:
        console.print(f"[red]{error}")
    return 1 if failures else 0


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
    arguments = parser.parse_args()
    console = Console(width=120)
    print_plans(console)
    print_calibration(console)
    return check_settings(console, arguments.settings, seed=arguments.seed)


if __name__ == "__main__":
    raise SystemExit(main())
