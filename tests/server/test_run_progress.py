"""How far a run is, as whoever follows it sees it: it never goes back, and moves while a generator is fitted."""

from __future__ import annotations

import pytest

from server import runs
from server.run_progress import RunProgress, RunStoppedError


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def run(scenario) -> str:
    scenario.register()
    scenario.enrol()
    return scenario.start()


def seen(store, run: str) -> tuple[str, int, float]:
    found = runs.get_run(store, run)
    return found.phase, found.round, round(found.percent, 1)


def test_each_part_of_a_run_moves_it_on(store, run) -> None:
    progress, clock = make(store, run)
    told = []
    progress.report("quote", 0)
    told.append(seen(store, run))
    progress.report("measure", 0)
    progress.report("warm-start", 0, step_done=1)
    told.append(seen(store, run))
    look = progress.while_fitting(0)
    for done in (0.2, 0.6, 1.0):
        clock.now += 1.5
        look("table", done)
        told.append(seen(store, run))
    for recorded in (1, 2, 3):
        progress.report("refine", recorded)
        told.append(seen(store, run))
    assert told == [
        ("quote", 0, 0.0),
        ("warm-start", 0, 25.0),
        ("warm-start", 0, 30.0),
        ("warm-start", 0, 40.0),
        ("warm-start", 0, 50.0),
        ("refine", 1, 50.0),
        ("refine", 2, 75.0),
        ("refine", 3, 99.0),  # the release is still to be proposed
    ]


def test_every_measurement_has_a_fit_of_its_own(store, run) -> None:
    progress, clock = make(store, run, num_measurements=2)
    told = []
    for number in (0, 1):
        progress.report("measure", number)
        told.append(seen(store, run)[2])
        look = progress.while_fitting(number)
        clock.now += 1.5
        look("table", 0.5)
        told.append(seen(store, run)[2])
    progress.report("refine", 2)
    assert [*told, seen(store, run)[2]] == [0.0, 30.0, 40.0, 70.0, 80.0]


def test_rows_and_pictures_are_one_fit_that_does_not_start_anew(store, run) -> None:
    progress, clock = make(store, run, with_pictures=True)
    look = progress.while_fitting(0)
    told = []
    parts = ("table", 0.5), ("table", 1.0), ("images", 0.0), ("images", 0.5), ("images", 1.0), ("lens", 1.0)
    for what, done in parts:
        clock.now += 1.5
        look(what, done)
        told.append(seen(store, run)[2])
    assert told == [26.2, 27.5, 27.5, 37.5, 47.5, 50.0]


def test_a_long_fit_is_written_down_once_a_second_and_said_twice_a_minute(store, run) -> None:
    progress, clock = make(store, run)
    look = progress.while_fitting(0)
    percents = set()
    for step in range(620):
        clock.now += 0.1
        look("table", step / 620)
        percents.add(seen(store, run)[2])
    assert 55 <= len(percents) <= 63
    said = [message.text for message in runs.run_messages(store, run)]
    assert sum(text.startswith("fits the table: ") for text in said) == 2


def test_a_fit_ends_soon_after_somebody_asked_to_stop(store, run) -> None:
    progress, clock = make(store, run)
    look = progress.while_fitting(0)
    runs.request_stop(store, run)
    look("table", 0.1)  # asked too short a time ago
    clock.now += 0.6
    with pytest.raises(RunStoppedError):
        look("table", 0.2)


def test_the_time_to_go_of_a_resumed_run_counts_only_what_this_attempt_did(store, run) -> None:
    progress, clock = make(store, run)
    progress.report("refine", 1)  # half of it was done before
    assert runs.get_run(store, run).eta_seconds is None
    clock.now += 10
    progress.report("refine", 2)
    assert runs.get_run(store, run).eta_seconds == pytest.approx(10)


def make(store, run: str, **changes) -> tuple[RunProgress, Clock]:
    clock = Clock()
    return RunProgress(store, run, num_rounds=3, clock=clock, **changes), clock
