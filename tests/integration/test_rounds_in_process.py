"""Whole runs through the product's code in one process: what a site, a coordinator and a crash may do to a run."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from in_process import InProcessLab

from client.guard import Guard
from client.policy import load_policy
from client.state import SiteState
from models.digests import digest_of
from models.exchange import RoundReply, RoundRequest
from models.study import Study
from privacy.cli.folders import write_durably
from privacy.receipt import open_receipt
from privacy.verification import verify_export
from server import ledger_store, round_records, runs, spends, studies
from server.federation import SiteFailure
from server.rounds import RoundFailedError, run_rounds

SPENDING = {"measure", "refine", "compare"}
STUDY = """
name = "small"
[privacy]
epsilon = 4.0
delta = 1e-5
[measure]
budget_share = 0.6
noise_multiplier = 1.5  # given, so that no test waits for the calibration
[warm_start]
components = 20
steps = 30
[refine]
rounds = 1
steps = 4
num_judged = 1_000
hidden_width = 16
noise_multiplier = 1.5
[federation]
patients_per_site = 800
quorum = 2
round_deadline_seconds = 3.0
[table]
label = "ill"
[[table.columns]]
name = "age"
kind = "integer"
minimum = 0
maximum = 99
bins = 5
[[table.columns]]
name = "sex"
kind = "categorical"
categories = ["f", "m"]
[[table.columns]]
name = "ill"
kind = "boolean"
"""


def _patients(seed: int, n: int = 400) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    age = rng.integers(0, 100, n)
    return pd.DataFrame({"age": age, "sex": rng.choice(["f", "m"], n), "ill": age > 60})


@pytest.fixture
def study() -> Study:
    return Study.from_toml(STUDY)


@pytest.fixture
def lab(tmp_path):
    made = InProcessLab(tmp_path, {name: _patients(i) for i, name in enumerate(["ash", "birch", "cedar"])})
    yield made
    made.store.close()


class Tampering:
    """A federation in which one site's replies are changed on the way."""

    def __init__(
        self, inner, site: str, change: Callable[[RoundRequest, RoundReply], RoundReply | SiteFailure]
    ):
        self._inner, self._site, self._change = inner, site, change

    def exchange(
        self, requests: Mapping[str, RoundRequest], **waiting: Any
    ) -> Mapping[str, RoundReply | SiteFailure]:
        replies = dict(self._inner.exchange(requests, **waiting))
        request = requests.get(self._site)
        if request is not None and request.kind in SPENDING:
            replies[self._site] = self._change(request, replies[self._site])
        return replies


def _start(lab, study: Study) -> str:
    studies.register_study(lab.store, study, created_by="operator")
    return runs.create_run(lab.store, study.name, started_by="operator").id


def _debits(lab, site: str) -> list[tuple[str, int]]:
    home = lab.sites[site]
    guard = Guard(home.record_file, load_policy(home.policy_file))
    return [(e.body["run"], e.body["round"]) for e in guard.history() if e.kind == "debit"]


def _with(change) -> Callable[[RoundRequest, RoundReply], RoundReply]:
    def tamper(_request, reply):
        return replace(reply, arrays={name: change(array) for name, array in reply.arrays.items()})

    return tamper


TAMPERINGS = {
    "not-a-number": (_with(lambda a: torch.full_like(a, float("nan"))), "update digest"),
    "scaled": (_with(lambda a: a * 1e6), "update digest"),
    "wrong-shape": (_with(lambda a: a[:1]), "update digest"),
    "no-receipt": (lambda _q, r: replace(r, receipt=None), "no receipt"),
    "stale-nonce": (lambda _q, r: replace(r, nonce="old"), "nonce"),
    "other-site": (lambda _q, r: replace(r, site="birch"), "site"),
    "other-round": (lambda _q, r: replace(r, round=7), "round"),
    "silent": (lambda _q, _r: SiteFailure(code="timeout", reason="no reply within 3 s"), "no reply"),
}


def test_a_whole_run_ends_in_a_release_within_every_cap(lab, study):
    run = _start(lab, study)
    release = run_rounds(lab.federation, lab.store, run)
    assert release is not None
    assert release.state == "candidate"
    assert runs.get_run(lab.store, run).state == "completed"
    assert [one.round for one in round_records.list_rounds(lab.store, run)] == [1, 2, 3]
    for spend in spends.run_spends(lab.store, run):
        assert 0 < float(spend.spent_epsilon) <= study.privacy.epsilon
    for site in lab.sites:
        assert _debits(lab, site) == [(run, 1), (run, 2), (run, 3)]


def test_a_later_exchange_measures_what_the_first_found_and_pays_for_itself(lab, study):
    measure = study.measure.model_copy(update={"exchanges": 2, "noise_multiplier": 2.5})
    study = study.model_copy(update={"measure": measure, "name": "twice"})
    asked = {}

    def note(request: RoundRequest, reply: RoundReply) -> RoundReply:
        asked[request.round] = request
        return reply

    run = _start(lab, study)
    release = run_rounds(Tampering(lab.federation, "ash", note), lab.store, run)
    assert release is not None
    assert [asked[number].kind for number in (1, 2, 3, 4)] == ["measure", "measure", "refine", "compare"]
    assert [set(asked[number].arrays) for number in (1, 2)] == [set(), {"emphasis"}]
    emphasis = asked[2].arrays["emphasis"]
    assert float(emphasis[0, 2]) > float(emphasis[0, 1])  # age tells who is ill, and nothing of the sex
    recorded = round_records.list_rounds(lab.store, run)
    assert [one.phase for one in recorded] == ["measure", "measure", "refine", "compare"]
    for site in lab.sites:
        assert _debits(lab, site) == [(run, 1), (run, 2), (run, 3), (run, 4)]
    verify_export(dict(ledger_store.export_files(lab.store)).get, key=lab.store.key.public)
    for spend in spends.run_spends(lab.store, run):
        assert 0 < float(spend.spent_epsilon) <= study.privacy.epsilon


def test_a_release_is_never_of_an_exchange_that_others_followed(lab, study, monkeypatch):
    """However well it fits: it was held against fewer moments."""
    measure = study.measure.model_copy(update={"exchanges": 2, "budget_share": 1.0, "noise_multiplier": 2.5})
    refine = study.refine.model_copy(update={"rounds": 0})
    study = study.model_copy(update={"measure": measure, "refine": refine, "name": "twice"})
    recorded = round_records.record_round

    def praised(*arguments, **values):
        return recorded(*arguments, **{**values, "scores": {**values["scores"], "misfit": values["round"]}})

    monkeypatch.setattr(round_records, "record_round", praised)
    assert run_rounds(lab.federation, lab.store, _start(lab, study)).round == 2


def test_an_emphasis_that_cannot_be_used_is_refused_before_anything_is_spent(lab, study):
    measure = study.measure.model_copy(update={"exchanges": 2, "noise_multiplier": 2.5})
    study = study.model_copy(update={"measure": measure, "name": "twice"})
    said = {}

    class Spoiling:
        def exchange(self, requests, **waiting):
            spoilt = {
                site: replace(one, arrays={"emphasis": torch.full((3, 3), 1e9, dtype=torch.float64)})
                if (one.kind, one.round) == ("measure", 2)
                else one
                for site, one in requests.items()
            }
            replies = lab.federation.exchange(spoilt, **waiting)
            said.update(
                {site: r.refusal.reason for site, r in replies.items() if getattr(r, "refusal", None)}
            )
            return replies

    run = _start(lab, study)
    with pytest.raises(RoundFailedError):
        run_rounds(Spoiling(), lab.store, run)
    assert all("emphasis lies outside of 0.05 to 20" in reason for reason in said.values())
    assert len(said) == 3
    for site in lab.sites:
        assert _debits(lab, site) == [(run, 1)]


def test_every_site_has_countersigned_the_last_checkpoint(lab, study):
    run_rounds(lab.federation, lab.store, _start(lab, study))
    newest = ledger_store.latest_checkpoint(lab.store)
    for home in lab.sites.values():
        assert newest.cosigned_at(home.receipt_key().public) is not None


@pytest.mark.parametrize("name", sorted(set(TAMPERINGS) - {"silent"}))
def test_a_bad_reply_is_dropped_with_its_reason_and_the_round_goes_on(lab, study, name):
    change, said = TAMPERINGS[name]
    run = _start(lab, study)
    release = run_rounds(Tampering(lab.federation, "ash", change), lab.store, run)
    assert release is not None
    first, *later = round_records.list_rounds(lab.store, run)
    dropped = {spend.site: spend for spend in first.spends}["ash"]
    assert dropped.outcome == "rejected"
    assert said in dropped.reason
    assert len(later) == 2
    for recorded in (first, *later):
        counted = {spend.site for spend in recorded.spends if spend.outcome == "accepted"}
        assert counted == {"birch", "cedar"}
    # Its patients pay for what was dropped and for nothing more, and the release does not claim them.
    assert _debits(lab, "ash") == [(run, 1)]
    assert release.sites == ("birch", "cedar")


def test_a_dropped_update_still_leaves_its_receipt_in_the_ledger(lab, study):
    run = _start(lab, study)
    run_rounds(Tampering(lab.federation, "ash", TAMPERINGS["scaled"][0]), lab.store, run)
    (recorded, *_) = round_records.list_rounds(lab.store, run)
    dropped = {spend.site: spend for spend in recorded.spends}["ash"]
    assert dropped.outcome == "rejected"
    assert dropped.receipt is not None
    assert float(dropped.spent_epsilon) > 0


@pytest.mark.parametrize(
    "spoil",
    [
        lambda r: replace(r, quote={"ready": True, "reasons": [], "spent_epsilon": "x"}),
        lambda r: replace(r, quote=None),
        lambda r: replace(r, quote={**r.quote, "projected_epsilon": "inf"}),
        lambda r: replace(r, witness={"size": "many"}),
        lambda r: replace(r, witness={"size": 1, "signature": "no line"}),
        lambda r: replace(r, policy={"epsilon_total": 3.0}),
    ],
    ids=["no-number", "none", "infinite", "size", "signature", "policy"],
)
def test_no_answer_to_a_quote_can_stop_a_run(lab, study, spoil):
    class Spoiling(Tampering):
        def exchange(self, requests, **waiting):
            replies = dict(self._inner.exchange(requests, **waiting))
            if requests["birch"].kind == "quote":
                replies["ash"] = spoil(replies["ash"])
            return replies

    run = _start(lab, study)
    assert run_rounds(Spoiling(lab.federation, "ash", None), lab.store, run) is not None


def test_fingerprints_do_not_tell_whether_patients_changed_between_runs(lab, study):
    seen = []
    for name in ("one", "two"):
        roomy = study.model_copy(update={"name": name})
        run_rounds(lab.federation, lab.store, _start(lab, roomy))
        entries = [stored.entry for stored in ledger_store.read_entries(lab.store)]
        receipts = [
            open_receipt(e.body.envelope, lab.sites["ash"].receipt_key().public)
            for e in entries
            if e.kind == "receipt" and '"ash' in str(e.body.envelope).replace("'", '"')
        ]
        seen.append({r.dataset_fingerprint for r in receipts if r.run == runs.list_runs(lab.store)[0].id})
    assert len(seen[0]) == len(seen[1]) == 1
    assert seen[0].isdisjoint(seen[1])


def test_a_policy_that_changed_is_in_the_ledger_before_the_next_receipt(lab, study):
    home = lab.sites["ash"]
    home.policy_file.write_text(home.policy_file.read_text().replace("minimum = 20", "minimum = 30"))
    run = _start(lab, study)
    run_rounds(lab.federation, lab.store, run)
    assert "ash has changed its policy" in "\n".join(m.text for m in runs.run_messages(lab.store, run))
    kinds = [
        (entry.entry.kind, getattr(entry.entry.body, "site", None))
        for entry in ledger_store.read_entries(lab.store)
    ]
    assert kinds.count(("site-policy", "ash")) == 2


def test_below_quorum_the_run_fails_in_words_and_resumes_without_a_second_debit(lab, study):
    def silent(_request, _reply):
        return SiteFailure(code="unavailable", reason="the site is not connected")

    study = study.model_copy(
        update={
            "federation": study.federation.model_copy(update={"quorum": 3, "round_deadline_seconds": 0.5})
        }
    )
    run = _start(lab, study)
    with pytest.raises(RoundFailedError, match=r"2 of at least 3 sites.*ash: the site is not connected"):
        run_rounds(Tampering(lab.federation, "ash", silent), lab.store, run)
    failed = runs.get_run(lab.store, run)
    assert failed.state == "failed"
    assert "ash" in failed.reason
    runs.resume_run(lab.store, run)
    assert run_rounds(lab.federation, lab.store, run) is not None
    for site in lab.sites:
        assert _debits(lab, site) == [(run, 1), (run, 2), (run, 3)]


@pytest.mark.parametrize("exchanges", [1, 2])
def test_a_coordinator_that_dies_in_any_round_goes_on_with_the_same_replies(lab, study, exchanges):
    measure = study.measure.model_copy(update={"exchanges": exchanges, "noise_multiplier": 2.5})
    study = study.model_copy(update={"measure": measure})

    class Dying:
        def __init__(self, inner, at: int):
            self.inner, self.at, self.seen = inner, at, {}

        def exchange(self, requests, **waiting):
            replies = self.inner.exchange(requests, **waiting)
            request = next(iter(requests.values()))
            self.seen[request.kind, request.round] = {s: r.update_digest for s, r in replies.items()}
            if request.kind in SPENDING and request.round == self.at:
                raise KeyboardInterrupt
            return replies

    run, kept = _start(lab, study), {}
    numbers = range(1, study.num_rounds + 1)
    for at in numbers:
        dying = Dying(lab.federation, at)
        with pytest.raises(KeyboardInterrupt):
            run_rounds(dying, lab.store, run)
        for key, digests in dying.seen.items():
            if key[0] != "quote":
                assert kept.setdefault(key, digests) == digests
    assert run_rounds(lab.federation, lab.store, run) is not None
    for site in lab.sites:
        assert _debits(lab, site) == [(run, number) for number in numbers]


class EarlierVersion(SiteState):
    """What a site kept before an upgrade that gave replies another field."""

    def keep_reply(self, reply: RoundReply) -> str:
        body, arrays = reply.encode()
        fields = json.loads(body)
        del fields["lacks"]
        data = json.dumps(fields, sort_keys=True, separators=(",", ":")).encode() + b"\n" + arrays
        write_durably(self._path(reply.run, reply.round, "reply"), data)
        return digest_of(data)


@pytest.mark.parametrize("damage", ["another version", "lost"])
def test_a_kept_reply_that_cannot_be_sent_again_costs_that_round_and_no_debit(lab, study, damage):
    quorum = study.federation.model_copy(update={"round_deadline_seconds": 0.5})
    study = study.model_copy(update={"federation": quorum})
    run, home = _start(lab, study), lab.sites["ash"]

    class Dying:
        def exchange(self, requests, **waiting):
            replies = lab.federation.exchange(requests, **waiting)
            if next(iter(requests.values())).kind == "measure":
                raise KeyboardInterrupt  # after every site has settled the round
            return replies

    rounds = lab.federation.sites["ash"]
    now, rounds._state = rounds._state, EarlierVersion(home.state)
    with pytest.raises(KeyboardInterrupt):
        run_rounds(Dying(), lab.store, run)
    rounds._state = now
    if damage == "lost":
        (home.state / run / "round-00001.reply").unlink()
    release = run_rounds(lab.federation, lab.store, run)
    assert release is not None
    first, *_ = round_records.list_rounds(lab.store, run)
    outcome = {spend.site: spend for spend in first.spends}["ash"]
    assert outcome.outcome == "refused"
    assert "it stays spent there and is not computed again" in outcome.reason
    if damage == "another version":
        assert "have the site start its earlier version until the run has ended" in outcome.reason
    assert str(home.path) not in outcome.reason
    # Its staff is told too; it is asked again for later rounds, and no round is debited twice.
    assert "stays spent and is not" in home.notices.read_text()
    assert _debits(lab, "ash") == [(run, 1), (run, 3)]
    codes = [
        entry.entry.body.code
        for entry in ledger_store.read_entries(lab.store)
        if entry.entry.kind == "refusal"
    ]
    assert codes == ["lost-reply"]
    assert spends.rounds_by_site(lab.store, run, "accepted")["ash"] == (3,)


def test_a_second_run_of_a_study_is_refused_for_its_budget(lab, study):
    run_rounds(lab.federation, lab.store, _start(lab, study))
    again = runs.create_run(lab.store, study.name, started_by="operator").id
    with pytest.raises(RoundFailedError, match=r"0 of at least 2 sites were ready.*the cap is 4"):
        run_rounds(lab.federation, lab.store, again)
    for site in lab.sites:
        assert all(run != again for run, _ in _debits(lab, site))


def test_a_table_that_does_not_fit_is_told_to_the_staff_and_to_nobody_else(lab, study):
    home = lab.sites["ash"]
    table = pd.read_parquet(home.data.path)
    table.loc[3, "sex"] = "zz-unknown"
    table.to_parquet(home.data.path)
    run = _start(lab, study)
    assert run_rounds(lab.federation, lab.store, run) is not None
    told = home.notices.read_text()
    assert "row 5" in told
    assert "'sex'" in told
    said = "\n".join(message.text for message in runs.run_messages(lab.store, run))
    assert "ash: the site is not ready" in said
    assert "zz-unknown" not in said
    assert "row 5" not in said
    assert _debits(lab, "ash") == []


def test_too_few_patients_read_like_any_other_unreadiness(lab, study):
    home = lab.sites["ash"]
    pd.read_parquet(home.data.path).head(5).to_parquet(home.data.path)
    run = _start(lab, study)
    run_rounds(lab.federation, lab.store, run)
    said = "\n".join(message.text for message in runs.run_messages(lab.store, run))
    assert "ash: the site is not ready" in said
    assert "patients" not in said.split("ash:")[1].splitlines()[0]


@pytest.mark.parametrize(
    "shown",
    [
        "text",
        {},
        {"note": "no note", "since": 0, "proof": []},
        {"note": "\ud800", "proof": [7]},
        {"proof": ["zz"]},
    ],
)
def test_no_checkpoint_makes_a_site_raise_or_sign(lab, study, shown):
    request = RoundRequest(kind="witness", run="run-x", round=1, nonce="n", study=study, checkpoint={})
    object.__setattr__(request, "checkpoint", shown)
    reply = lab.federation.sites["ash"].handle(request)
    assert reply.refusal is not None
    assert reply.refusal.code == "request"
    assert reply.witness is None


def test_a_site_countersigns_no_second_history(lab, study):
    from privacy.checkpoint import Checkpoint, sign_checkpoint

    run_rounds(lab.federation, lab.store, _start(lab, study))
    newest = ledger_store.latest_checkpoint(lab.store).checkpoint
    forked = sign_checkpoint(
        Checkpoint(origin=newest.origin, size=newest.size, root=b"\x00" * 32), lab.coordinator.signing_key()
    )
    request = RoundRequest(
        kind="witness",
        run="run-x",
        round=1,
        nonce="n",
        study=study,
        checkpoint={"note": forked.decode(), "since": newest.size, "proof": []},
    )
    reply = lab.federation.exchange({"ash": request}, deadline_seconds=1)["ash"]
    assert reply.refusal is not None
    assert reply.witness is None
    assert "not the one seen before" in lab.sites["ash"].notices.read_text()
    assert list(lab.sites["ash"].state.glob("refused-*.checkpoint"))
