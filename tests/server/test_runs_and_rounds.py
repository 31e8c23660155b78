"""Runs: one at a time, idempotent round by round, resumable from the last transaction."""

from __future__ import annotations

import threading

import pytest

from server import ledger_store, releases, round_records, run_attempts, runs, sites, spends, studies
from server.errors import ConflictError, InvalidError, NotFoundError
from server.round_records import SiteOutcome
from server.store import StoredFileError


@pytest.fixture
def ready(scenario):
    scenario.register()
    scenario.enrol()
    return scenario


def test_an_unknown_study_names_those_there_are(ready) -> None:
    with pytest.raises(NotFoundError, match="'lungs'; there is 'heart'"):
        runs.create_run(ready.store, "lungs", started_by="olga")


def test_there_is_one_active_run_even_if_two_ask_at_once(ready) -> None:
    results: list[object] = []

    def ask() -> None:
        try:
            results.append(runs.create_run(ready.store, "heart", started_by="olga"))
        except ConflictError as error:
            results.append(error)

    threads = [threading.Thread(target=ask) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(isinstance(result, runs.Run) for result in results) == 1
    assert len(results) == 5


def test_a_run_needs_its_quorum_of_sites(scenario) -> None:
    scenario.register()
    with pytest.raises(ConflictError, match="quorum of 2 sites, 0 are enrolled"):
        runs.create_run(scenario.store, "heart", started_by="olga")


def test_a_suspended_site_is_not_asked(ready) -> None:
    sites.set_state(ready.store, "west", "suspended")
    assert runs.create_run(ready.store, "heart", started_by="olga").sites == ("north", "south")


def test_a_round_is_one_transaction_with_receipts_aggregate_and_signed_checkpoint(ready) -> None:
    run = ready.start()
    before = ledger_store.num_entries(ready.store)
    recorded = ready.record(run, 1)
    kinds = [stored.entry.kind for stored in ledger_store.read_entries(ready.store, start=before)]
    assert kinds == ["receipt", "receipt", "receipt", "aggregate"]
    assert recorded.tree_size == ledger_store.num_entries(ready.store)
    signed = ledger_store.latest_checkpoint(ready.store)
    assert signed.verify(ready.store.key.public).size == recorded.tree_size
    assert [spend.spent_epsilon for spend in recorded.spends] == ["1.625"] * 3
    assert ready.store.load(recorded.arrays["generator"]) == ready.generator(1)
    assert runs.get_run(ready.store, run).round == 1


def test_recording_a_round_again_changes_nothing_and_other_arrays_are_refused(ready) -> None:
    run = ready.start()
    first = ready.record(run, 1)
    size = ledger_store.num_entries(ready.store)
    assert ready.record(run, 1) == first
    assert ledger_store.num_entries(ready.store) == size
    with pytest.raises(ConflictError, match="recorded with other arrays"):
        round_records.record_round(
            ready.store,
            run_id=run,
            round=1,
            phase="measure",
            base_digest=ready.base(1),
            next_base_digest=ready.base(2),
            arrays={"generator": b"another"},
            outcomes=[ready.outcome(run, 1, "north", base=ready.base(1))],
        )


def test_a_round_out_of_turn_is_refused(ready) -> None:
    run = ready.start()
    with pytest.raises(ConflictError, match="the next is 1"):
        ready.record(run, 2)


def test_an_error_in_the_middle_of_a_round_leaves_no_part_of_it(ready) -> None:
    run = ready.start()
    size = ledger_store.num_entries(ready.store)
    good = ready.outcome(run, 1, "north", base=ready.base(1))
    stranger = SiteOutcome(site="nowhere", outcome="failed", code="timeout")
    with pytest.raises(Exception, match=r"(?i)foreign key"):
        ready.record(run, 1, outcomes=[good, stranger])
    assert ledger_store.num_entries(ready.store) == size
    assert round_records.last_round(ready.store, run) is None
    assert spends.run_spends(ready.store, run) == []


def test_a_missed_quorum_keeps_receipts_and_refusals_but_no_round(ready) -> None:
    run = ready.start()
    outcomes = [
        ready.outcome(run, 1, "north", base=ready.base(1)),
        SiteOutcome(site="south", outcome="refused", code="budget", reason="epsilon 4 would be exceeded"),
        SiteOutcome(site="west", outcome="failed", code="timeout", reason="no reply in 300 s"),
    ]
    before = ledger_store.num_entries(ready.store)
    round_records.record_outcomes(ready.store, run_id=run, round=1, outcomes=outcomes)
    bodies = [stored.entry.body for stored in ledger_store.read_entries(ready.store, start=before)]
    assert [body.KIND for body in bodies] == ["receipt", "refusal", "refusal"]
    assert [body.code for body in bodies[1:]] == ["budget", "timeout"]
    assert round_records.last_round(ready.store, run) is None
    by_site = {spend.site: spend for spend in spends.run_spends(ready.store, run)}
    assert by_site["south"].reason == "epsilon 4 would be exceeded"
    # A retry in which the first site is silent does not forget its receipt, nor log it twice.
    retry = [SiteOutcome(site="north", outcome="failed", code="timeout")]
    round_records.record_outcomes(ready.store, run_id=run, round=1, outcomes=retry)
    silent = {spend.site: spend for spend in spends.run_spends(ready.store, run)}["north"]
    assert (silent.outcome, silent.spent_epsilon, silent.receipt is None) == ("failed", "1.625", False)
    ready.record(run, 1)
    entries = list(ledger_store.read_entries(ready.store, start=before))
    assert [stored.entry.kind for stored in entries] == [
        "receipt", "refusal", "refusal", "receipt", "receipt", "aggregate",
    ]  # fmt: skip


@pytest.mark.parametrize("asked_again", [True, False], ids=["silent", "not asked"])
def test_who_answered_only_an_attempt_that_missed_its_quorum_has_spent_and_is_in_no_release(
    ready, asked_again
) -> None:
    run = ready.start()
    early = [ready.outcome(run, 1, "north", base=ready.base(1))]
    round_records.record_outcomes(ready.store, run_id=run, round=1, outcomes=early)
    silent = [SiteOutcome(site="north", outcome="failed", code="timeout")] if asked_again else []
    others = [ready.outcome(run, 1, site, base=ready.base(1)) for site in ("south", "west")]
    ready.record(run, 1, outcomes=[*silent, *others])
    for number in (2, 3):
        ready.record(
            run,
            number,
            outcomes=[
                ready.outcome(run, number, site, base=ready.base(number)) for site in ("south", "west")
            ],
        )
    release = round_records.complete_run(ready.store, run, release_round=3)
    assert release.sites == ("south", "west")
    assert spends.rounds_by_site(ready.store, run, "accepted") == {"south": (1, 2, 3), "west": (1, 2, 3)}
    assert spends.rounds_by_site(ready.store, run, "accepted", last_round=1) == {"south": (1,), "west": (1,)}
    by_site = {spend.site: spend for spend in spends.run_spends(ready.store, run)}
    assert (by_site["north"].outcome, by_site["north"].spent_epsilon) == ("failed", "1.625")


def test_a_run_resumes_after_its_last_recorded_round(ready) -> None:
    run = ready.start()
    ready.record(run, 1)
    runs.finish_run(ready.store, run, "failed", reason="the SuperLink went away")
    with pytest.raises(ConflictError, match="is failed"):
        ready.record(run, 2)
    resumed = runs.resume_run(ready.store, run)
    assert (resumed.state, resumed.reason, resumed.round) == ("queued", "", 1)
    runs.start_running(ready.store, run)
    assert round_records.last_round(ready.store, run).round == 1
    ready.record(run, 2)
    both = round_records.list_rounds(ready.store, run)
    assert both == [round_records.get_round(ready.store, run, number) for number in (1, 2)]
    assert round_records.list_rounds(ready.store, run, limit=1) == both[1:]


def test_a_run_whose_loop_died_goes_on_by_itself_and_not_for_ever(ready) -> None:
    run = ready.start()
    ready.record(run, 1)
    for number in range(1, run_attempts.MAX_RESTARTS + 1):
        again = run_attempts.restart_run(ready.store, run, attempt=number, why="killed")
        assert (again.state, again.attempt) == ("queued", number + 1)
        runs.start_running(ready.store, run, attempt=number + 1)
    ended = run_attempts.restart_run(ready.store, run, attempt=run_attempts.MAX_RESTARTS + 1, why="killed")
    assert ended.state == "failed"
    assert "ended 6 times in round 2 (killed); resume the run" in ended.reason
    runs.resume_run(ready.store, run)  # a person: the count starts anew
    assert (
        run_attempts.restart_run(ready.store, run, attempt=ended.attempt + 1, why="killed").state == "queued"
    )
    said = [message.text for message in runs.run_messages(ready.store, run)]
    assert "the round loop ended (killed); goes on by itself after round 1 (1 of at most 5 times)" in said


def test_a_recorded_round_starts_the_count_of_restarts_anew(ready) -> None:
    run = ready.start()
    for number in range(1, run_attempts.MAX_RESTARTS + 1):
        run_attempts.restart_run(ready.store, run, attempt=number, why="killed")
    ready.record(run, 1)
    assert (
        run_attempts.restart_run(ready.store, run, attempt=run_attempts.MAX_RESTARTS + 1, why="killed").state
        == "queued"
    )


def test_two_who_notice_one_death_restart_a_run_once(ready) -> None:
    run = ready.start()
    assert run_attempts.restart_run(ready.store, run, attempt=1, why="killed").attempt == 2
    assert run_attempts.restart_run(ready.store, run, attempt=1, why="killed").attempt == 2


def test_a_run_that_a_person_stopped_is_never_taken_up_by_itself(ready) -> None:
    run = ready.start()
    runs.request_stop(ready.store, run)
    assert run_attempts.restart_run(ready.store, run, attempt=1, why="killed").state == "stopped"
    assert run_attempts.restart_run(ready.store, run, attempt=1, why="killed").state == "stopped"


def test_of_two_flower_runs_for_one_attempt_one_works_and_an_old_one_can_write_nothing(ready) -> None:
    run = runs.create_run(ready.store, "heart", started_by="olga")
    assert run_attempts.read_ticket(run_attempts.write_ticket(run)) == (run.id, 1)
    runs.start_running(ready.store, run.id, attempt=1, flower_run_id="7")
    assert run_attempts.note_flower_run(ready.store, run.id, "8", attempt=1).flower_run_id == "7"
    with pytest.raises(ConflictError, match="in Flower run 7; nothing was done in 8"):
        runs.start_running(ready.store, run.id, attempt=1, flower_run_id="8")
    run_attempts.restart_run(ready.store, run.id, attempt=1, why="killed")
    with pytest.raises(ConflictError, match="attempt 1 is over"):
        runs.start_running(ready.store, run.id, attempt=1, flower_run_id="7")
    assert runs.finish_run(ready.store, run.id, "failed", reason="late", attempt=1).state == "queued"
    with pytest.raises(InvalidError, match="must be a run's identifier, a slash and a number"):
        run_attempts.read_ticket("run-1")


def test_stopping_is_a_request_that_the_loop_sees(ready) -> None:
    run = ready.start()
    assert not runs.stop_requested(ready.store, run)
    assert runs.request_stop(ready.store, run).state == "stopping"
    assert runs.request_stop(ready.store, run).state == "stopping"
    assert runs.stop_requested(ready.store, run)
    ready.record(run, 1)  # the round in progress is not thrown away
    assert runs.finish_run(ready.store, run, "stopped").state == "stopped"
    assert runs.active_run(ready.store) is None
    with pytest.raises(ConflictError, match="nothing to stop"):
        runs.request_stop(ready.store, run)


def test_stopping_a_queued_run_ends_it(ready) -> None:
    run = runs.create_run(ready.store, "heart", started_by="olga")
    assert runs.request_stop(ready.store, run.id).state == "stopped"


def test_progress_shows_and_never_after_the_end(ready) -> None:
    run = ready.start()
    runs.report_progress(ready.store, run, phase="warm-start", round=1, percent=42.0, eta_seconds=12.5)
    shown = runs.get_run(ready.store, run)
    assert (shown.phase, shown.percent, shown.eta_seconds) == ("warm-start", 42.0, 12.5)
    runs.finish_run(ready.store, run, "failed", reason="no quorum")
    runs.report_progress(ready.store, run, phase="refine", round=2, percent=80.0)
    assert runs.get_run(ready.store, run).percent == 42.0
    texts = [message.text for message in runs.run_messages(ready.store, run)]
    assert texts[-1] == "failed: no quorum"
    with pytest.raises(InvalidError, match="percent is 101"):
        runs.report_progress(ready.store, run, phase="refine", round=2, percent=101)


def test_completing_a_run_proposes_its_release_once(ready) -> None:
    run = ready.start()
    for round in (1, 2, 3):
        ready.record(run, round)
    candidate = round_records.complete_run(ready.store, run, release_round=2)
    assert round_records.complete_run(ready.store, run, release_round=2) == candidate
    assert (candidate.state, candidate.gate, candidate.round) == ("candidate", "none passed", 2)
    assert candidate.sites == ("north", "south", "west")
    assert runs.get_run(ready.store, run).percent == 100
    with pytest.raises(ConflictError, match="completed; only a stopped or failed"):
        runs.resume_run(ready.store, run)


def test_a_release_goes_from_candidate_to_published_to_withdrawn_and_no_further(scenario) -> None:
    store = scenario.store
    release = scenario.release()
    assert release.state == "published"
    assert releases.publish_release(store, release.digest) == release
    body = next(ledger_store.read_entries(store, start=release.entry, count=1)).entry.body
    assert (body.KIND, body.state, body.release_digest) == ("release", "published", release.digest)
    assert releases.withdraw_release(store, release.digest, reason="a site asked").state == "withdrawn"
    with pytest.raises(ConflictError, match="stays so"):
        releases.publish_release(store, release.digest)
    kinds = [stored.entry.kind for stored in ledger_store.read_entries(store)]
    assert kinds[-2:] == ["release", "withdrawal"]


def test_weights_changed_on_disk_are_never_published(ready) -> None:
    run = ready.start()
    for round in (1, 2, 3):
        ready.record(run, round)
    candidate = round_records.complete_run(ready.store, run, release_round=3)
    path = ready.store.path_of(candidate.weights_digest)
    path.write_bytes(path.read_bytes()[:-1] + b"\x00")
    with pytest.raises(StoredFileError, match="no longer has the digest"):
        releases.publish_release(ready.store, candidate.digest)
    assert releases.get_release(ready.store, candidate.digest).state == "candidate"


def test_a_study_never_changes_under_its_name(ready) -> None:
    store, study = ready.store, ready.study
    assert studies.register_study(store, study, created_by="otto").created_by == "olga"
    other = study.model_copy(update={"title": "Another"})
    with pytest.raises(ConflictError, match="never changes"):
        studies.register_study(store, other, created_by="otto")


def test_noise_that_a_study_brings_along_must_keep_its_own_budget(scenario) -> None:
    weak = scenario.study.calibrated(measure=0.2, refine=8.0)
    with pytest.raises(InvalidError, match=r"cost epsilon .* the study's budget is 4"):
        studies.register_study(scenario.store, weak, created_by="olga")
    half = scenario.study.calibrated(measure=2.5, refine=None)
    with pytest.raises(InvalidError, match="of all phases that run, or of none"):
        studies.register_study(scenario.store, half, created_by="olga")


def test_a_study_without_noise_gets_it_and_comes_back_the_same(scenario) -> None:
    bare = scenario.study.calibrated(measure=None, refine=None)
    kept = studies.register_study(scenario.store, bare, created_by="olga")
    assert kept.study.is_calibrated
    assert kept.digest == kept.study.digest
    assert studies.register_study(scenario.store, bare, created_by="olga") == kept
    assert studies.register_study(scenario.store, kept.study, created_by="olga") == kept
    assert ledger_store.num_entries(scenario.store) == 1


def test_a_sites_keys_are_its_own(ready) -> None:
    store = ready.store
    north = sites.get_site(store, "north")
    again = {
        "name": "north",
        "receipt_key": north.receipt_key,
        "node_public_key": north.node_public_key,
        "policy": dict(north.policy),
    }
    size = ledger_store.num_entries(store)
    assert sites.enrol_site(store, **again) == north
    assert ledger_store.num_entries(store) == size
    with pytest.raises(ConflictError, match="enrolled with other keys"):
        sites.enrol_site(store, **{**again, "node_public_key": "ecdsa x"})
    with pytest.raises(InvalidError, match="must be equal"):
        sites.enrol_site(store, **{**again, "name": "east"})
    with pytest.raises(InvalidError, match="card cannot be used"):
        sites.enrol_site(store, **{**again, "policy": None})
    changed = sites.enrol_site(store, **{**again, "policy": {**north.policy, "epsilon_total": "3.0"}})
    assert changed.policy_digest != north.policy_digest
    assert [e.entry.kind for e in ledger_store.read_entries(store, start=size)] == ["site-policy"]


def test_a_site_that_left_stays_out(ready) -> None:
    sites.set_state(ready.store, "west", "left")
    with pytest.raises(ConflictError, match="left"):
        sites.set_state(ready.store, "west", "enrolled")
    assert list(ledger_store.read_entries(ready.store))[-1].entry.kind == "site-left"
