"""What a site holds is not sent again, and what it has lost is, for no more budget; through the product's code."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
from in_process import InProcessLab

from client.guard import Guard
from client.policy import load_policy
from client.rounds import SiteRounds
from models.exchange import RoundRequest
from models.study import Study
from server import round_records, runs, studies
from server.rounds import run_rounds

STUDY = Study.from_dict(
    {
        "name": "small",
        "privacy": {"epsilon": 6.0, "delta": 1e-5},
        "measure": {"budget_share": 0.6, "noise_multiplier": 1.5},
        "warm_start": {"components": 10, "steps": 10},
        "refine": {
            "rounds": 2,
            "steps": 1,
            "num_judged": 1_000,
            "hidden_width": 8,
            "noise_multiplier": 1.5,
        },
        "federation": {"patients_per_site": 800},
        "table": {
            "columns": [
                {"name": "ward", "kind": "categorical", "categories": list("abcdef")},
                {"name": "ill", "kind": "boolean"},
            ]
        },
    }
)


@pytest.fixture
def lab(tmp_path):
    rng = np.random.default_rng(0)
    tables = {
        name: pd.DataFrame({"ward": rng.choice(list("abcdef"), 300), "ill": rng.random(300) < 0.3})
        for name in ("ash", "birch")
    }
    made = InProcessLab(tmp_path, tables, epsilon=6.0)
    yield made
    made.store.close()


Message = tuple[str, int, list[str]]  # kind, round, names of the parts that travelled


class Ear:
    """Hears what one site is sent; `before` is called with each message's kind and round."""

    def __init__(self, rounds: SiteRounds, before: Callable[[str, int], None] = lambda kind, number: None):
        self.rounds, self.before = rounds, before
        self.heard: list[Message] = []

    def answer(self, body: bytes, payload: bytes) -> tuple[bytes, bytes]:
        head = json.loads(body)
        self.before(head["kind"], head["round"])
        self.heard.append((head["kind"], head["round"], sorted(name for name, _ in head["sent"])))
        return self.rounds.answer(body, payload)

    def of(self, kind: str, number: int) -> list[list[str]]:
        return [parts for one, where, parts in self.heard if (one, where) == (kind, number)]


def _run(lab: InProcessLab) -> str:
    studies.register_study(lab.store, STUDY, created_by="operator")
    run = runs.create_run(lab.store, STUDY.name, started_by="operator").id
    assert run_rounds(lab.federation, lab.store, run) is not None
    return run


def test_the_study_and_the_anchor_travel_once_and_each_generator_once(lab):
    ears = {name: Ear(rounds) for name, rounds in lab.federation.sites.items()}
    lab.federation.sites.update(ears)
    _run(lab)
    for ear in ears.values():
        assert ear.of("quote", 1) == [["study"]]
        assert ear.of("measure", 1) == [[]]
        assert ear.of("refine", 2) == [["component_logits", "logits"]]
        assert ear.of("refine", 3) == [["component_logits", "logits"]]
        assert all(parts == [] for kind, _, parts in ear.heard if kind == "witness")


def test_a_site_that_lost_what_it_held_is_sent_it_in_the_same_round_for_the_same_debit(lab):
    home = lab.sites["ash"]

    def lose(kind: str, number: int) -> None:
        if (kind, number) == ("refine", 3) and not ears["ash"].of("refine", 3):
            shutil.rmtree(home.state / "parts")

    ears = {"ash": Ear(lab.federation.sites["ash"], lose), "birch": Ear(lab.federation.sites["birch"])}
    lab.federation.sites.update(ears)
    run = _run(lab)
    new, whole = ["component_logits", "logits"], ["component_logits", "logits", "study"]
    assert ears["ash"].of("refine", 3) == [new, whole]
    assert ears["birch"].of("refine", 3) == [new]
    for recorded in round_records.list_rounds(lab.store, run):
        assert {spend.outcome for spend in recorded.spends} == {"accepted"}
    history = Guard(home.record_file, load_policy(home.policy_file)).history()
    assert [entry.body["round"] for entry in history if entry.kind == "debit"] == [1, 2, 3, 4]


def test_a_receipts_base_digest_is_that_of_the_arrays_whatever_travelled(lab):
    seen = {}
    handle = SiteRounds.handle

    class Noting(SiteRounds):
        def handle(self, request: RoundRequest):
            seen[request.round, request.kind] = (request.base_digest, request.digest)
            return handle(self, request)

    lab.federation.sites["ash"] = Noting(lab.sites["ash"])
    run = _run(lab)
    for recorded in round_records.list_rounds(lab.store, run)[1:]:
        assert seen[recorded.round, recorded.phase][0] == recorded.base_digest
