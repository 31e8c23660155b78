"""Sites that come late, leave, go silent or are interrupted in the middle: who is asked, and what it cost them."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from in_process import InProcessLab

from client.guard import Guard
from client.interruption import Interruption, RoundInterruptedError
from client.policy import load_policy
from client.rounds import SiteRounds
from models.exchange import RoundReply, RoundRequest
from models.study import Study
from server import ledger_store, round_records, runs, sites, spends, studies
from server.federation import SiteFailure
from server.rounds import RoundFailedError, run_rounds

SITES = ("ash", "birch", "cedar")
SPENDING = ("measure", "refine", "compare")
STUDY: dict[str, Any] = {
    "name": "small",
    "privacy": {"epsilon": 20.0, "delta": 1e-5},
    "measure": {"budget_share": 0.6, "noise_multiplier": 1.5},
    "warm_start": {"components": 10, "steps": 10},
    "refine": {
        **{"rounds": 3, "steps": 4, "num_judged": 1_000, "hidden_width": 8},
        "noise_multiplier": 1.5,
    },
    "federation": {"patients_per_site": 800, "quorum": 2, "round_deadline_seconds": 5.0},
    "table": {
        "label": "ill",
        "columns": [
            {"name": "sex", "kind": "categorical", "categories": ["f", "m"]},
            {"name": "ill", "kind": "boolean"},
        ],
    },
}
Reply = RoundReply | SiteFailure
Change = Callable[[RoundRequest, RoundReply], Reply]


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[InProcessLab]:
    rng = np.random.default_rng(1)
    tables = {
        name: pd.DataFrame({"sex": rng.choice(["f", "m"], 200), "ill": rng.random(200) < 0.3})
        for name in SITES
    }
    made = InProcessLab(tmp_path, tables, epsilon=20.0)
    yield made
    made.store.close()


def start(lab: InProcessLab, **federation: Any) -> str:
    study = Study.from_dict({**STUDY, "federation": {**STUDY["federation"], **federation}})
    studies.register_study(lab.store, study, created_by="operator")
    return runs.create_run(lab.store, study.name, started_by="operator").id


class Changed:
    """The lab's federation, with something between it and the coordinator; notes who was asked what."""

    def __init__(self, lab: InProcessLab, change: Callable[[str, RoundRequest], Reply | None]) -> None:
        self._lab, self._change = lab, change
        self.asked: list[tuple[str, str, int]] = []

    def exchange(self, requests: Mapping[str, RoundRequest], **waiting: Any) -> Mapping[str, Reply]:
        found: dict[str, Reply] = {}
        for site, request in requests.items():
            self.asked.append((site, request.kind, request.round))
            changed = self._change(site, request)
            if changed is None:
                changed = self._lab.federation.exchange({site: request}, **waiting)[site]
            found[site] = changed
        return found

    def of(self, site: str, *kinds: str) -> list[int]:
        return [number for name, kind, number in self.asked if name == site and kind in kinds]


SILENT = SiteFailure(code="timeout", reason="no reply within 5 s")


def entries(lab: InProcessLab, site: str, kind: str) -> list[int]:
    home = lab.sites[site]
    guard = Guard(home.record_file, load_policy(home.policy_file))
    return [entry.body["round"] for entry in guard.history() if entry.kind == kind]


def without_receipt(
    lab: InProcessLab, *spoilt: tuple[str, int]
) -> Callable[[str, RoundRequest], Reply | None]:
    """These sites' replies to these rounds lose their receipts on the way."""

    def change(site: str, request: RoundRequest) -> Reply | None:
        if request.kind in ("quote", "witness") or (site, request.round) not in spoilt:
            return None
        reply = lab.federation.exchange({site: request}, deadline_seconds=1)[site]
        return replace(reply, receipt=None)  # type: ignore[type-var]

    return change


def test_a_site_that_is_silent_in_a_round_is_quoted_on_the_way_and_comes_back(lab) -> None:
    run = start(lab)

    def silent(site: str, request: RoundRequest) -> Reply | None:
        return SILENT if site == "ash" and (request.kind, request.round) == ("refine", 2) else None

    federation = Changed(lab, silent)
    assert run_rounds(federation, lab.store, run) is not None
    assert federation.of("ash", *SPENDING) == [1, 2, 4, 5]
    assert federation.of("ash", "quote") == [1, 4]  # beside round 3, for the rest from round 4 on
    assert entries(lab, "ash", "debit") == [1, 4, 5]
    recorded = {
        one.round: {s.site: s.outcome for s in one.spends}
        for one in round_records.list_rounds(lab.store, run)
    }
    assert recorded[2]["ash"] == "failed"
    assert "ash" not in recorded[3]
    said = [message.text for message in runs.run_messages(lab.store, run)]
    assert "ash takes part from round 4 on" in said


@pytest.mark.parametrize("late_join", [True, False])
def test_a_site_that_was_not_ready_may_join_later_if_the_study_says_so(lab, late_join) -> None:
    run = start(lab, late_join=late_join)

    def away_at_first(site: str, request: RoundRequest) -> Reply | None:
        away = site == "ash" and request.kind == "quote" and request.round == 1
        return SiteFailure(code="unavailable", reason="the site is not connected") if away else None

    federation = Changed(lab, away_at_first)
    release = run_rounds(federation, lab.store, run)
    debited = entries(lab, "ash", "debit")
    assert debited == ([2, 3, 4, 5] if late_join else [])
    first, *_ = round_records.list_rounds(lab.store, run)
    assert [spend.site for spend in first.spends] == ["birch", "cedar"]
    if late_join:
        by_site = {spend.site: float(spend.spent_epsilon) for spend in spends.run_spends(lab.store, run)}
        assert 0 < by_site["ash"] < by_site["birch"]  # its refinements alone
    else:
        assert release.sites == ("birch", "cedar")


@pytest.mark.parametrize("late_join", [True, False])
def test_a_site_whose_measurement_came_too_late_refines_only_if_the_study_takes_late_ones(
    lab, late_join
) -> None:
    run = start(lab, late_join=late_join)

    def late_once(site: str, request: RoundRequest) -> Reply | None:
        if (site, request.kind) != ("ash", "measure"):
            return None
        lab.federation.exchange({site: request}, deadline_seconds=1)  # it debits, and nobody hears the reply
        return SILENT

    release = run_rounds(Changed(lab, late_once), lab.store, run)
    assert entries(lab, "ash", "debit") == ([1, 3, 4, 5] if late_join else [1])
    by_site = spends.rounds_by_site(lab.store, run, "accepted", last_round=release.round)
    assert by_site["birch"] == tuple(range(1, release.round + 1))
    assert by_site.get("ash", ()) == tuple(n for n in (3, 4, 5) if late_join and n <= release.round)
    assert release.sites == tuple(sorted(by_site))


def test_a_site_whose_reply_was_rejected_is_not_asked_again_in_this_run_though_the_coordinator_dies(
    lab,
) -> None:
    run = start(lab)

    spoil = without_receipt(lab, ("ash", 2))

    def spoilt(site: str, request: RoundRequest) -> Reply | None:
        if request.kind == "refine" and request.round == 4 and not died:
            died.append(True)
            raise KeyboardInterrupt
        return spoil(site, request)

    died: list[bool] = []
    federation = Changed(lab, spoilt)
    with pytest.raises(KeyboardInterrupt):
        run_rounds(federation, lab.store, run)
    release = run_rounds(federation, lab.store, run)
    assert federation.of("ash", *SPENDING) == [1, 2]
    assert federation.of("ash", "quote") == [1]
    assert federation.of("ash", "witness") == [5, 5]  # it still sees the ledger that its receipts are in
    assert entries(lab, "ash", "debit") == [1, 2]
    assert "ash" in release.sites  # its measurement counts
    said = [message.text for message in runs.run_messages(lab.store, run)]
    assert sum("ash is not asked again in this run" in text for text in said) == 1


def test_a_run_that_lacks_its_quorum_for_rejected_replies_says_whose_and_in_which_round(lab) -> None:
    run = start(lab)
    spoiling = Changed(lab, without_receipt(lab, ("ash", 2), ("birch", 3)))
    with pytest.raises(
        RoundFailedError, match=r"1 of at least 2 .*birch: there is no .*ash: its reply in round 2"
    ):
        run_rounds(spoiling, lab.store, run)
    assert entries(lab, "ash", "debit") == [1, 2]


def test_a_resumed_round_is_asked_again_of_all_who_answered_it_since_that_costs_them_nothing(lab) -> None:
    run = start(lab, quorum=3)
    with pytest.raises(RoundFailedError, match=r"2 of at least 3 sites.*ash: there is no receipt"):
        run_rounds(Changed(lab, without_receipt(lab, ("ash", 2))), lab.store, run)
    runs.resume_run(lab.store, run)
    assert run_rounds(lab.federation, lab.store, run) is not None
    for site in SITES:
        assert entries(lab, site, "debit") == [1, 2, 3, 4, 5]
        assert spends.rounds_by_site(lab.store, run, "accepted")[site] == (1, 2, 3, 4, 5)


def test_a_site_that_stays_away_is_quoted_less_and_less_often(lab) -> None:
    run = start(lab)
    federation = Changed(
        lab, lambda site, request: SILENT if site == "ash" and request.kind != "witness" else None
    )
    assert run_rounds(federation, lab.store, run) is not None
    assert federation.of("ash", "quote") == [1, 2, 3, 5]  # beside rounds 1, 2 and 4
    assert federation.of("ash", *SPENDING) == []


def test_sites_that_are_away_for_a_moment_do_not_fail_the_run_and_one_that_says_no_is_not_asked_twice(
    lab, monkeypatch
) -> None:
    monkeypatch.setattr("server.round_exchange.RETRY_PAUSE_SECONDS", 0.05)
    run = start(lab)
    lab.sites["cedar"].policy_file.write_text(
        lab.sites["cedar"]
        .policy_file.read_text()
        .replace("epsilon_per_study = 20.0", "epsilon_per_study = 0.1")
    )

    def restarting(site: str, request: RoundRequest) -> Reply | None:
        away = request.kind == "quote" and federation.of(site, "quote").count(1) < 3 and site != "cedar"
        return SiteFailure(code="unavailable", reason="the site is not connected") if away else None

    federation = Changed(lab, restarting)
    assert run_rounds(federation, lab.store, run) is not None
    assert federation.of("ash", "quote") == [1, 1, 1]
    assert federation.of("cedar", "quote")[:2] == [1, 2]  # once for round 1, then beside it


def test_a_site_that_does_not_allow_the_app_is_not_asked_again_and_again(lab) -> None:
    run = start(lab, quorum=3)
    foreign = SiteFailure(code="foreign-app", reason="the site's policy does not allow this app", final=True)
    federation = Changed(lab, lambda site, request: foreign if site == "ash" else None)
    started = time.monotonic()
    with pytest.raises(
        RoundFailedError, match=r"2 of at least 3 sites were ready; ash: .* not allow this app"
    ):
        run_rounds(federation, lab.store, run)
    assert federation.of("ash", "quote") == [1]
    assert time.monotonic() - started < 30  # of the two minutes that a site has which is away


def test_a_site_that_stops_allowing_the_app_in_a_run_has_refused(lab) -> None:
    run = start(lab)

    def foreign(site: str, request: RoundRequest) -> Reply | None:
        if site != "ash" or request.round < 2 or request.kind == "witness":
            return None
        return SiteFailure(code="foreign-app", reason="the site's policy does not allow this app", final=True)

    assert run_rounds(Changed(lab, foreign), lab.store, run) is not None
    assert spends.rounds_by_site(lab.store, run, "refused") == {"ash": (2,)}


def test_a_site_that_left_is_not_asked_again(lab) -> None:
    run = start(lab)

    def leave(site: str, request: RoundRequest) -> Reply | None:
        if (site, request.kind, request.round) == ("birch", "refine", 3):
            sites.set_state(lab.store, "ash", "left")
        return None

    federation = Changed(lab, leave)
    assert run_rounds(federation, lab.store, run) is not None
    assert federation.of("ash", *SPENDING, "quote") == [1, 1, 2, 3]
    said = [message.text for message in runs.run_messages(lab.store, run)]
    assert said.count("ash is no longer enrolled and is not asked any more") == 1


def test_a_round_below_its_quorum_takes_in_a_site_that_came_back_meanwhile(lab, monkeypatch) -> None:
    monkeypatch.setattr("server.round_exchange.RETRY_PAUSE_SECONDS", 0.05)
    run = start(lab)

    def two_silent(site: str, request: RoundRequest) -> Reply | None:
        silent = {"ash": 2, "birch": 3}
        return SILENT if request.kind == "refine" and silent.get(site) == request.round else None

    federation = Changed(lab, two_silent)
    assert run_rounds(federation, lab.store, run) is not None
    assert federation.of("ash", "refine", "compare") == [2, 3, 4, 5]
    assert federation.of("birch", "refine", "compare") == [2, 3, 3, 5]
    said = [message.text for message in runs.run_messages(lab.store, run)]
    assert "ash takes part in round 3 after all" in said
    assert "birch takes part from round 5 on" in said


def test_a_site_whose_reply_was_lost_answers_again_with_the_same_bytes(lab, monkeypatch) -> None:
    monkeypatch.setattr("server.round_exchange.RETRY_PAUSE_SECONDS", 0.05)
    run = start(lab, quorum=3)
    lost: list[RoundReply] = []

    def lose_once(site: str, request: RoundRequest) -> Reply | None:
        if (site, request.kind, request.round) != ("ash", "refine", 2) or lost:
            return None
        lost.append(lab.federation.exchange({site: request}, deadline_seconds=1)[site])  # type: ignore[arg-type]
        return SiteFailure(code="unavailable", reason="the site's SuperNode went away before it answered")

    assert run_rounds(Changed(lab, lose_once), lab.store, run) is not None
    assert lost[0].refusal is None
    second = round_records.get_round(lab.store, run, 2)
    receipts = {spend.site: spend.receipt for spend in second.spends}
    assert receipts["ash"] == lost[0].receipt
    assert Counter(entries(lab, "ash", "debit")) == Counter(range(1, 6))


def test_a_stop_in_a_round_keeps_what_came_and_the_resumed_run_debits_nothing_twice(lab) -> None:
    run = start(lab)

    def stop_in_round_three(site: str, request: RoundRequest) -> Reply | None:
        if (request.kind, request.round) != ("refine", 3) or site == "ash":
            return None
        if not runs.stop_requested(lab.store, run):
            runs.request_stop(lab.store, run)
        lab.federation.exchange({site: request}, deadline_seconds=1)  # it debits, and nobody hears the reply
        return SILENT

    assert run_rounds(Changed(lab, stop_in_round_three), lab.store, run) is None
    stopped = runs.get_run(lab.store, run)
    assert (stopped.state, stopped.round) == ("stopped", 2)
    by_site = {spend.site: spend for spend in spends.run_spends(lab.store, run)}
    assert (by_site["ash"].round, by_site["ash"].outcome) == (3, "accepted")
    kinds = [stored.entry.kind for stored in ledger_store.read_entries(lab.store)]
    assert kinds.count("aggregate") == 2
    runs.resume_run(lab.store, run)
    assert run_rounds(lab.federation, lab.store, run) is not None
    for site in SITES:
        assert entries(lab, site, "debit") == [1, 2, 3, 4, 5]
        assert entries(lab, site, "settled") == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("kind", ["measure", "refine", "compare"])
def test_an_interrupted_round_keeps_its_debit_and_nothing_else_and_is_computed_again(lab, kind) -> None:
    number = {"measure": 1, "refine": 3, "compare": 5}[kind]
    run, home = start(lab), lab.sites["ash"]
    interruption = Countdown(looks=3 if kind == "refine" else 1)
    rounds = SiteRounds(home, interruption=interruption)

    def files() -> set[str]:
        return {path.name for path in (home.state / run).glob("*")}

    def at_the_site(site: str, request: RoundRequest) -> Reply | None:
        if site != "ash" or (request.kind, request.round) != (kind, number):
            return None
        before = files()
        interruption.running = True
        with pytest.raises(RoundInterruptedError) as interrupted:
            rounds.handle(request)
        interruption.running = False
        assert entries(lab, "ash", "debit")[-1] == number
        assert number not in entries(lab, "ash", "settled")
        assert files() == before  # nothing of the attempt was kept, no discriminator either
        first = rounds.handle(request)
        assert interrupted.value  # still held, as a debugger would: the round is free nevertheless
        assert first.refusal is None
        assert first.encode() == replace(rounds.handle(request), witness=first.witness).encode()
        return first

    assert run_rounds(Changed(lab, at_the_site), lab.store, run) is not None
    assert entries(lab, "ash", "debit") == [1, 2, 3, 4, 5]
    assert entries(lab, "ash", "settled") == [1, 2, 3, 4, 5]
    assert {spend.outcome for spend in round_records.get_round(lab.store, run, number).spends} == {"accepted"}


class Countdown(Interruption):
    """Interrupts at so many looks."""

    def __init__(self, *, looks: int) -> None:
        super().__init__()
        self.running = False
        self._looks = looks

    def check(self) -> None:
        if self.running:
            self._looks -= 1
            if self._looks == 0:
                self.ask()
            super().check()
            self.begin()
