"""One of four sites lies, with valid keys and signatures: what is dropped, what is bounded, and that rounds go on."""

from __future__ import annotations

import logging

import numpy as np
import pandas as pd
import pytest
import torch
from hostile_site import ATTACKS, CLAIM, FLIPPED, PASSING, REPLAY, HostileSite, flip_labels
from in_process import InProcessLab

from client.home import SiteHome
from client.rounds import SiteRounds
from models.comparison import GAIN
from models.study import Study
from server import round_records, runs, studies
from server.rounds import RoundFailedError, run_rounds

COLUMNS = [
    {"name": "age", "kind": "integer", "minimum": 0, "maximum": 99, "bins": 6},
    {"name": "ward", "kind": "categorical", "categories": list("abcdef")},
    {"name": "sex", "kind": "categorical", "categories": ["f", "m"]},
    {"name": "ill", "kind": "boolean"},
]
LIAR = "site-4"


def study(rule: str, **federation: object) -> Study:
    return Study.from_dict(
        {
            "name": f"small-{rule}",
            "privacy": {"epsilon": 6.0, "delta": 1e-5},
            "measure": {"budget_share": 0.6, "noise_multiplier": 1.5},
            "warm_start": {"components": 20, "steps": 20},
            "refine": {
                "rounds": 1,
                "steps": 2,
                "num_judged": 1_000,
                "hidden_width": 8,
                "noise_multiplier": 1.5,
            },
            "federation": {
                **{"patients_per_site": 800, "quorum": 3, "round_deadline_seconds": 5.0},
                **{"aggregation": rule, **federation},
            },
            "table": {"columns": COLUMNS, "label": "ill"},
        }
    )


def patients(seed: int, n: int = 600) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    age = rng.integers(0, 100, n)
    ward = rng.choice(list("abcdef"), n, p=[0.4, 0.3, 0.1, 0.1, 0.05, 0.05])
    return pd.DataFrame({"age": age, "ward": ward, "sex": rng.choice(["f", "m"], n), "ill": age > 79})


def run_with(tmp_path, attack: str, rule: str):
    tables = {f"site-{k}": patients(k) for k in range(1, 5)}
    if attack in (FLIPPED, CLAIM):
        tables[LIAR] = flip_labels(tables[LIAR], "ill")
    lab = InProcessLab(tmp_path, tables, epsilon=6.0)
    lab.federation.sites[LIAR] = HostileSite(lab.sites[LIAR], attack=attack)
    generator = lab.train(study(rule)).table
    (run,) = runs.list_runs(lab.store)
    rounds = round_records.list_rounds(lab.store, run.id)
    said = "\n".join(message.text for message in runs.run_messages(lab.store, run.id))
    lab.store.close()
    outcomes = [{spend.site: spend.outcome for spend in one.spends} for one in rounds]
    return generator.one_way()[-1].item(), outcomes, said


@pytest.fixture(autouse=True)
def quiet(caplog) -> None:
    caplog.set_level(logging.CRITICAL)


# Whose measurement was dropped is asked neither to refine nor to compare.
DROPPED = {attack: ["rejected", None, None] for attack in ATTACKS if attack not in PASSING}
DROPPED |= {REPLAY: ["accepted", "rejected", None]}


@pytest.mark.parametrize("attack", DROPPED)
def test_what_no_honest_site_can_send_is_dropped_and_logged_and_the_run_goes_on(tmp_path, attack):
    ill, outcomes, said = run_with(tmp_path, attack, "mean")
    assert [one.get(LIAR) for one in outcomes] == DROPPED[attack]
    for one in outcomes:
        assert {outcome for site, outcome in one.items() if site != LIAR} == {"accepted"}
    assert f"{LIAR} rejected: " in said
    assert f"{LIAR} is not asked again in this run" in said
    assert ill == pytest.approx(0.2, abs=0.06)


@pytest.mark.parametrize("rule", ["median", "trimmed-mean"])
@pytest.mark.parametrize("attack", [FLIPPED, CLAIM])
def test_a_lie_that_no_check_can_tell_is_bounded_by_a_robust_rule(tmp_path, attack, rule):
    believed, outcomes, said = run_with(tmp_path / "mean", attack, "mean")
    assert {one[LIAR] for one in outcomes} == {"accepted"}
    assert believed > (0.45 if attack == CLAIM else 0.3)  # of 0.2 that are ill
    bounded, _, _ = run_with(tmp_path / rule, attack, rule)
    assert bounded == pytest.approx(0.2, abs=0.06)
    if attack == CLAIM:
        assert f"{LIAR} counts for 50% of the patients, 100% by its own number" in said


class Saying(SiteRounds):
    """A site that takes part in all of a round, and says in the comparison what it likes."""

    def __init__(self, site: SiteHome, gain: float) -> None:
        super().__init__(site)
        self._gain = gain

    def _compare(self, *_: object) -> dict[str, torch.Tensor]:
        return {GAIN: torch.tensor([self._gain], dtype=torch.float64)}


@pytest.mark.parametrize(
    ("gains", "round"),
    [((200, 150, 180, 190), 2), ((-50, -60, -40, 1e9), 1), ((200, 150, 180, -1e9), 1), ((5, -5, 5, -5), 1)],
    ids=["all for it", "one against all", "a veto", "nobody is sure"],
)
def test_refining_is_proposed_if_the_sites_and_not_one_of_them_speak_for_it(tmp_path, gains, round):
    lab = InProcessLab(tmp_path, {f"site-{k}": patients(k) for k in range(1, 5)}, epsilon=6.0)
    for site, gain in zip(sorted(lab.sites), gains, strict=True):
        lab.federation.sites[site] = Saying(lab.sites[site], gain)
    asked = study("mean")
    studies.register_study(lab.store, asked, created_by="operator")
    run = runs.create_run(lab.store, asked.name, started_by="operator").id
    release = run_rounds(lab.federation, lab.store, run)
    assert release is not None
    assert release.round == round
    compared = round_records.get_round(lab.store, run, 3)
    kept = round_records.get_round(lab.store, run, round).arrays["generator"]
    assert compared.arrays["generator"] == kept
    lab.store.close()


def test_a_robust_rule_asks_for_more_sites_than_are_there_in_words(tmp_path):
    lab = InProcessLab(tmp_path, {f"site-{k}": patients(k) for k in (1, 2, 3)}, epsilon=6.0)
    lab.federation.sites["site-3"] = HostileSite(lab.sites["site-3"], attack="not a number")
    asked = study("median")
    studies.register_study(lab.store, asked, created_by="operator")
    run = runs.create_run(lab.store, asked.name, started_by="operator").id
    with pytest.raises(RoundFailedError, match=r"2 of at least 3 sites.*site-3: .*not finite"):
        run_rounds(lab.federation, lab.store, run)
    lab.store.close()
