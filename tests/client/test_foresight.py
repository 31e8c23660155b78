"""The next round's cost is worked out ahead: the debit then finds it, and nothing is decided or written."""

from __future__ import annotations

import pandas as pd
import pytest
from in_process import InProcessLab

from client.foresight import foresee_next
from client.guard import Guard
from client.policy import load_policy
from models.exchange import RoundRequest
from models.study import Study
from privacy import accounting
from privacy.events import MechanismEvent

STUDY = Study.from_dict(
    {
        "name": "small",
        "privacy": {"epsilon": 3.0, "delta": 1e-5},
        "measure": {"budget_share": 0.5, "noise_multiplier": 4.0},
        "refine": {"rounds": 1, "noise_multiplier": 3.0},
        "table": {"columns": [{"name": "sex", "kind": "categorical", "categories": ["f", "m"]}]},
    }
)


@pytest.fixture
def site(tmp_path):
    lab = InProcessLab(tmp_path, {"ash": pd.DataFrame({"sex": ["f", "m"] * 50})}, epsilon=3.0)
    yield lab.sites["ash"]
    lab.store.close()


def request(kind: str, number: int) -> RoundRequest:
    return RoundRequest(kind=kind, run="run-x", round=number, nonce="n", study=STUDY)


def test_a_foreseen_cost_is_at_hand_and_the_record_is_untouched(site):
    guard = Guard(site.record_file, load_policy(site.policy_file))
    before = len(guard.history())
    timer = foresee_next(site, request("quote", 1))
    timer.join()
    misses = accounting._spend_of_groups.cache_info().misses
    assert len(guard.history()) == before
    guard.debit(
        run="run-x",
        round=1,
        study_name=STUDY.name,
        study_digest=STUDY.digest,
        columns=STUDY.inputs,
        events=[MechanismEvent.from_dict(STUDY.mechanism("measure"))],
        delta=1e-5,
        study_epsilon=3.0,
        num_patients=100,
        request_digest="sha256:" + "0" * 64,
    )
    assert accounting._spend_of_groups.cache_info().misses == misses


@pytest.mark.parametrize(("kind", "number"), [("compare", 3), ("witness", 1)])
def test_nothing_is_foreseen_where_no_round_follows(site, kind, number):
    assert foresee_next(site, request(kind, number)) is None


def test_a_record_that_cannot_be_read_is_left_to_the_debit(site):
    site.policy_file.write_text("no policy")
    foresee_next(site, request("measure", 1)).join()
