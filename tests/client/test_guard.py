"""The guard refuses or records every spend before it happens, and never refunds."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from client.guard import Guard, RefusedError
from client.policy import SitePolicy, parse_policy, policy_text
from client.record import RecordVerificationError
from privacy.accounting import spend_of
from privacy.events import MechanismEvent

STUDY = "sha256:" + "1" * 64
OTHER = "sha256:" + "2" * 64
ASKED = "sha256:" + "a" * 64
REPLY = "sha256:" + "b" * 64
DELTA = 1e-5
NOON = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)


def event(sigma: float = 10.0) -> MechanismEvent:
    return MechanismEvent(phase="measure", kind="gaussian", noise_multiplier=sigma)


def cost(count: int, *, sigma: float = 10.0, delta: float = DELTA) -> float:
    return spend_of([event(sigma)] * count, delta=delta).epsilon


def policy(**changes) -> SitePolicy:
    values = {
        "epsilon_per_run": 8.0,
        "epsilon_per_study": 8.0,
        "epsilon_total": 8.0,
        "max_delta": DELTA,
        "min_patients": 100,
        "app_digests": [],
        "approval": "automatic",
    }
    return parse_policy(policy_text(**(values | changes)))


class Site:
    """A guard with a clock that the test moves, and a round's worth of arguments."""

    def __init__(self, folder, allowed: SitePolicy) -> None:
        self.now = NOON
        self.path = folder / "record.db"
        self.use(allowed)

    def use(self, allowed: SitePolicy) -> None:
        self.guard = Guard(self.path, allowed, clock=lambda: self.now, timeout_seconds=20)

    def study(self, **changes):
        values = {
            "study_name": "adult",
            "study_digest": STUDY,
            "columns": ["age"],
            "delta": DELTA,
            "study_epsilon": 50.0,
            "num_patients": 1000,
        }
        return values | changes

    def debit(self, round_number: int, *, run: str = "run", asked: str = ASKED, events=None, **changes):
        return self.guard.debit(
            run=run,
            round=round_number,
            events=events or [event()],
            request_digest=asked,
            **self.study(**changes),
        )

    def rounds_until_refused(self, **changes) -> tuple[int, RefusedError]:
        for number in range(1, 60):
            try:
                self.debit(number, **changes)
            except RefusedError as refusal:
                return number - 1, refusal
        pytest.fail("never refused")


@pytest.fixture
def site(tmp_path):
    return Site(tmp_path, policy())


def kinds(site: Site) -> list[str]:
    return [entry.kind for entry in site.guard.history()]


def test_a_debit_is_in_the_record_with_its_cumulative_spend(site):
    first, second = site.debit(1), site.debit(2, run="another-run")
    assert first.spend_epsilon == cost(1)
    assert second.spend_epsilon == cost(2) == site.guard.spent(STUDY, delta=DELTA).epsilon
    assert site.guard.events(STUDY) == (event(), event())
    assert kinds(site) == ["opened", "policy", "debit", "debit"]
    site.guard.verify()


def test_a_debit_is_seen_by_every_later_guard_and_never_refunded(site):
    site.debit(1)  # and then nothing was ever heard of it
    site.use(policy())
    assert site.guard.spent(STUDY, delta=DELTA).epsilon == cost(1)
    assert not hasattr(site.guard, "refund")


def test_a_retry_is_the_same_debit(site):
    first = site.debit(1)
    del first
    again = site.debit(1)
    assert again.reply_digest is None
    assert again.spend_epsilon == cost(1)
    assert len(site.guard.events(STUDY)) == 1


def test_a_settled_round_gives_its_reply_again_and_is_never_computed_twice(site):
    site.guard.settle(site.debit(1), reply_digest=REPLY, reply_path="run/round-1.reply")
    again = site.debit(1)
    assert (again.reply_digest, again.reply_path) == (REPLY, "run/round-1.reply")
    site.guard.settle(again, reply_digest=REPLY)
    with pytest.raises(RefusedError, match="one reply only"):
        site.guard.settle(again, reply_digest=OTHER)
    assert kinds(site).count("settled") == 1
    site.guard.verify()


def test_a_retry_costs_nothing_even_when_the_budget_is_gone(tmp_path):
    site = Site(tmp_path, policy(epsilon_per_run=cost(1), epsilon_per_study=cost(1), epsilon_total=cost(1)))
    site.debit(1)
    with pytest.raises(RefusedError):
        site.debit(2)
    assert site.debit(1).spend_epsilon == cost(1)


@pytest.mark.parametrize("changes", [{"asked": OTHER}, {"study_digest": OTHER}])
def test_another_request_for_a_debited_round_is_refused_and_recorded(site, changes):
    site.debit(1)
    with pytest.raises(RefusedError, match="another request") as refusal:
        site.debit(1, **changes)
    assert refusal.value.code == "request"
    assert kinds(site)[-1] == "refused"
    assert len(site.guard.events()) == 1


def test_a_round_that_is_being_computed_is_not_given_out_twice(site):
    debit = site.debit(1)
    second = Guard(site.path, policy(), clock=lambda: site.now)
    with pytest.raises(RefusedError, match="being computed") as refusal:
        second.debit(run="run", round=1, events=[event()], request_digest=ASKED, **site.study())
    assert refusal.value.code == "busy"
    site.guard.settle(debit, reply_digest=REPLY)
    again = second.debit(run="run", round=1, events=[event()], request_digest=ASKED, **site.study())
    assert again.reply_digest == REPLY


def test_only_a_debited_round_can_be_settled(site, tmp_path):
    (tmp_path / "other").mkdir()
    other = Site(tmp_path / "other", policy())
    with pytest.raises(RefusedError, match="never debited"):
        other.guard.settle(site.debit(1), reply_digest=REPLY)


@pytest.mark.parametrize(
    ("cap", "message"),
    [
        ("epsilon_per_run", "this run"),
        ("epsilon_per_study", "study 'adult'"),
        ("epsilon_total", "all studies"),
    ],
)
def test_each_cap_stops_exactly_where_it_is(tmp_path, cap, message):
    caps = {"epsilon_per_run": cost(3), "epsilon_per_study": cost(3), "epsilon_total": cost(3)}
    if cap != "epsilon_per_run":
        caps["epsilon_per_run"] = cost(2)
    if cap == "epsilon_total":
        caps["epsilon_per_study"] = cost(2)
    site = Site(tmp_path, policy(**caps))
    run, study = "run", STUDY
    site.debit(1), site.debit(2)
    if cap != "epsilon_per_run":
        run = "second"
    if cap == "epsilon_total":
        study = OTHER
    site.debit(3, run=run, study_digest=study)
    with pytest.raises(RefusedError, match=message) as refusal:
        site.debit(4, run=run, study_digest=study)
    assert refusal.value.code == "budget"
    assert len(site.guard.events()) == 3
    assert kinds(site)[-1] == "refused"


def test_a_cap_a_hair_lower_stops_one_round_earlier(tmp_path):
    caps = dict.fromkeys(("epsilon_per_run", "epsilon_per_study", "epsilon_total"), cost(3) - 2e-6)
    rounds, _ = Site(tmp_path, policy(**caps)).rounds_until_refused()
    assert rounds == 2


def test_the_studys_own_budget_caps_it_too(site):
    rounds, refusal = site.rounds_until_refused(study_epsilon=cost(2))
    assert rounds == 2
    assert f"the cap is {cost(2):g}" in str(refusal)


def test_the_total_composes_all_studies_once_at_the_policys_delta(tmp_path):
    total = cost(4, delta=1e-5)
    caps = {"epsilon_per_run": total, "epsilon_per_study": total, "epsilon_total": total}
    site = Site(tmp_path, policy(**caps, max_delta=1e-5))
    for number, study in enumerate((STUDY, OTHER, STUDY, OTHER), 1):
        site.debit(number, study_digest=study, delta=1e-6, study_epsilon=99)
    assert site.guard.spent(delta=1e-5).epsilon == total
    with pytest.raises(RefusedError, match="all studies at this site would go"):
        site.debit(5, study_digest=OTHER, delta=1e-6, study_epsilon=99)


def test_a_period_has_its_own_cap_and_frees_up_with_time(tmp_path):
    site = Site(tmp_path, policy(window_days=30, epsilon_per_window=cost(2)))
    site.debit(1), site.debit(2)
    with pytest.raises(RefusedError, match="within 30 days"):
        site.debit(3)
    site.now += timedelta(days=29, hours=23)
    with pytest.raises(RefusedError, match="within 30 days"):
        site.debit(3)
    site.now += timedelta(hours=2)
    site.debit(3)
    site.now -= timedelta(days=300)  # a clock set back opens nothing
    site.debit(4)
    with pytest.raises(RefusedError, match="within 30 days"):
        site.debit(5)


@pytest.mark.parametrize(
    ("allowed", "asked", "message"),
    [
        ({"studies": ["heart"]}, {}, "not among the studies"),
        ({"studies": []}, {}, "not among the studies"),
        ({"columns": ["age"]}, {"columns": ["age", "zip"]}, r"\['zip'\]"),
        ({"max_delta": 1e-6}, {}, "delta is 1e-05"),
    ],
)
def test_what_the_policy_does_not_allow_is_refused_before_any_spend(tmp_path, allowed, asked, message):
    site = Site(tmp_path, policy(**allowed))
    with pytest.raises(RefusedError, match=message) as refusal:
        site.debit(1, **asked)
    assert refusal.value.code == "policy"
    assert site.guard.events() == ()
    assert kinds(site) == ["opened", "refused"]


def test_a_study_may_be_allowed_by_name_or_by_digest(tmp_path):
    for number, studies in enumerate((["adult"], [STUDY]), 1):
        (tmp_path / str(number)).mkdir()
        Site(tmp_path / str(number), policy(studies=studies)).debit(1)


def test_nothing_runs_in_quiet_hours(tmp_path):
    local = NOON.astimezone()
    hours = tuple(f"{local + timedelta(minutes=minutes):%H:%M}" for minutes in (-1, 1))
    site = Site(tmp_path, policy(quiet_hours=hours))
    with pytest.raises(RefusedError, match="nothing runs here between"):
        site.debit(1)
    site.now += timedelta(minutes=1)
    site.debit(1)


def test_too_few_patients_is_refused_without_telling_how_many(site):
    with pytest.raises(RefusedError) as refusal:
        site.debit(1, num_patients=99)
    assert refusal.value.code == "data"
    assert "99" not in str(refusal.value)
    _, *entries = site.guard.history()  # the first names the record, by chance
    assert all("99" not in str(entry.body) for entry in entries)
    site.debit(1, num_patients=100)


def test_no_other_refusal_depends_on_the_number_of_patients(tmp_path):
    caps = dict.fromkeys(("epsilon_per_run", "epsilon_per_study", "epsilon_total"), 0.01)
    site = Site(tmp_path, policy(**caps))
    told = set()
    for number, patients in enumerate((1, 10_000), 1):
        with pytest.raises(RefusedError) as refusal:
            site.debit(number, num_patients=patients)
        told.add((refusal.value.code, str(refusal.value)))
        quote = site.guard.quote(planned_events=[event()], **site.study(num_patients=patients))
        told.add((quote.allowed, quote.reasons))
    assert len(told) == 2


def test_a_person_approves_first_where_the_policy_says_so(tmp_path):
    site = Site(tmp_path, policy(approval="manual"))
    with pytest.raises(RefusedError, match="nobody at this site has approved") as refusal:
        site.debit(1)
    assert refusal.value.code == "approval"
    site.guard.decide(STUDY, "approved", study_name="adult", by="Dr. Weber")
    site.debit(1)
    site.guard.decide(STUDY, "withdrawn", study_name="adult", by="Dr. Weber", reason="new ethics vote")
    with pytest.raises(RefusedError, match="has withdrawn"):
        site.debit(2)
    with pytest.raises(RefusedError, match="has withdrawn"):
        site.debit(1)  # nothing more leaves, not even what was paid for
    assert site.guard.spent(STUDY, delta=DELTA).epsilon == cost(1)


def test_a_denial_counts_in_automatic_mode_too(site):
    site.guard.decide(STUDY, "denied", study_name="adult", by="Dr. Weber")
    with pytest.raises(RefusedError, match="has denied"):
        site.debit(1)


def test_a_decision_has_a_known_word_and_a_name(site):
    with pytest.raises(ValueError, match="decision"):
        site.guard.decide(STUDY, "maybe", study_name="adult", by="Dr. Weber")
    with pytest.raises(ValueError, match="by is empty"):
        site.guard.decide(STUDY, "approved", study_name="adult", by=" ")


def test_a_quote_projects_without_spending(site):
    site.debit(1)
    quote = site.guard.quote(planned_events=[event()] * 3, **site.study(study_epsilon=5.0))
    assert (quote.spent_epsilon, quote.projected_epsilon, quote.cap_epsilon) == (cost(1), cost(4), 5.0)
    assert quote.allowed
    assert "of your cap 5" in quote.sentence
    assert site.guard.spent(STUDY, delta=DELTA).epsilon == cost(1)


def test_a_quote_names_everything_that_stands_against_it(tmp_path):
    site = Site(tmp_path, policy(approval="manual", columns=["age"], epsilon_per_run=0.1, max_delta=1e-6))
    quote = site.guard.quote(planned_events=[event()] * 3, **site.study(columns=["age", "zip"]))
    assert not quote.allowed
    assert len(quote.reasons) == 4
    assert all(word in " ".join(quote.reasons) for word in ("zip", "delta", "approved", "cap is 0.1"))


def test_a_quote_does_not_count_rounds_twice_when_a_run_is_resumed(tmp_path):
    caps = dict.fromkeys(("epsilon_per_run", "epsilon_per_study", "epsilon_total"), cost(3))
    site = Site(tmp_path, policy(**caps))
    site.debit(1), site.debit(2)
    plan = site.study(planned_events=[event()] * 2)
    resumed = site.guard.quote(**plan, run="run", first_round=2)
    assert resumed.allowed
    assert resumed.projected_epsilon == cost(3)
    assert not site.guard.quote(**plan, run="another", first_round=2).allowed


def test_a_quote_that_cannot_be_costed_is_not_allowed(site):
    quote = site.guard.quote(planned_events=[event(0.01)], **site.study())
    assert not quote.allowed
    assert "cannot be established" in quote.reasons[0]
    with pytest.raises(RefusedError, match="cannot be established"):
        site.debit(1, events=[event(0.01)])


def test_every_question_is_listed_once_for_the_person_who_decides(tmp_path):
    site = Site(tmp_path, policy(approval="manual"))
    for _ in range(3):
        site.guard.quote(planned_events=[event()] * 2, **site.study(columns=["sex", "age"]))
    site.guard.quote(planned_events=[event()], **site.study(study_digest=OTHER, study_name="heart"))
    first, second = site.guard.requests()
    assert (first.study_name, first.columns, first.decision) == ("adult", ("age", "sex"), None)
    assert first.projected_epsilon == repr(cost(2))
    site.guard.decide(OTHER, "denied", study_name="heart", by="Dr. Weber", reason="not ours")
    assert site.guard.requests()[1] == replace(
        second, decision="denied", decided_by="Dr. Weber", reason="not ours"
    )
    assert kinds(site) == ["opened", "asked", "asked", "decision"]


def test_who_decides_sees_what_a_whole_run_would_cost_not_its_last_rounds(tmp_path):
    site = Site(tmp_path, policy(approval="manual"))
    site.guard.quote(planned_events=[event()] * 3, **site.study())
    site.guard.quote(planned_events=[event()], **site.study())  # for the last round, on the way
    (asked,) = site.guard.requests()
    assert asked.projected_epsilon == repr(cost(3))
    site.guard.quote(planned_events=[event(0.2)] * 50, **site.study())
    (beyond,) = site.guard.requests()
    assert float(beyond.projected_epsilon) > float(beyond.cap_epsilon)  # it would be refused


def test_a_nagging_coordinator_does_not_fill_the_disk(tmp_path):
    site = Site(tmp_path, policy(studies=[]))
    for _ in range(5):
        with pytest.raises(RefusedError):
            site.debit(1)
    assert kinds(site) == ["opened", "refused"]


def test_the_policy_in_force_is_in_the_record(site):
    site.debit(1)
    site.use(policy(min_patients=50))
    site.debit(2)
    site.debit(3)
    noted = [entry.body for entry in site.guard.history() if entry.kind == "policy"]
    assert [entry["policy"]["min_patients"] for entry in noted] == [100, 50]
    debits = [entry.body["policy_digest"] for entry in site.guard.history() if entry.kind == "debit"]
    assert debits == [noted[0]["digest"], noted[1]["digest"], noted[1]["digest"]]


@pytest.mark.parametrize(
    "changes",
    [
        {"round_number": 0},
        {"round_number": True},
        {"asked": "sha256:short"},
        {"study_digest": "1" * 64},
        {"delta": 0.0},
        {"delta": 1e-12},
        {"study_epsilon": float("nan")},
    ],
)
def test_a_request_that_makes_no_sense_is_refused(site, changes):
    with pytest.raises(RefusedError) as refusal:
        site.debit(**({"round_number": 1} | changes))
    assert refusal.value.code == "request"
    assert site.guard.events() == ()


def test_a_round_without_a_mechanism_is_refused(site):
    with pytest.raises(RefusedError, match="no round"):
        site.guard.debit(run="run", round=1, events=[], request_digest=ASKED, **site.study())


def test_a_recorded_spend_below_its_events_is_noticed(site, monkeypatch):
    from client import guard as module

    half = module.project_study
    monkeypatch.setattr(
        module,
        "project_study",
        lambda plan, past: replace(half(plan, past), after=spend_of([event(30.0)], delta=DELTA)),
    )
    site.debit(1)
    with pytest.raises(RecordVerificationError, match="its events cost"):
        site.guard.verify()


def test_the_record_holds_no_count_of_patients(site):
    site.guard.quote(planned_events=[event()], **site.study(num_patients=31_337))
    site.guard.settle(site.debit(1, num_patients=31_337), reply_digest=REPLY)
    assert b"31337" not in site.path.read_bytes()
    assert all("31337" not in str(entry) for entry in site.guard.history())
