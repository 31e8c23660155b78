"""Previews: twenty patients at once, from a process that may hang or die without keeping the API from answering."""

from __future__ import annotations

import os
import signal
import threading
import time
from concurrent.futures import Future

import pytest

from server.previews import MAX_WAITING, Previewer, PreviewUnavailableError


@pytest.fixture
def database_url(tmp_path) -> str:
    return f"sqlite:///{tmp_path / 'fedtwin.db'}"  # the process that draws has no database


@pytest.fixture
def release(scenario) -> str:
    return scenario.release().digest


def _ask(api, release: str, **wanted):
    return api.post("researcher", f"/v1/releases/{release}/preview", wanted)


def _post(api, release: str, **wanted):
    """Ask until the process that draws has started, as its 503 says."""
    deadline = time.monotonic() + 120
    while (answer := _ask(api, release, **wanted)).status_code == 503:
        assert answer.headers["retry-after"] == "2"
        assert time.monotonic() < deadline
    return answer


def test_a_preview_shows_twenty_patients_and_how_the_conditions_meet_the_release(api, release: str) -> None:
    answer = _post(api, release, conditions="age >= 60 and sex == 'female'", seed=3)
    assert answer.status_code == 200, answer.text
    shown = answer.json()
    assert (shown["synthetic"], shown["columns"], len(shown["rows"])) == (True, ["sex", "age", "ill"], 20)
    assert all(row[0] == "female" and row[1] >= 60 and row[2] in (True, False, None) for row in shown["rows"])
    assert 0 < shown["share_of_release"] < 1
    assert shown["share_is_exact"] is True
    assert 1 <= shown["effective_components"] <= 3
    assert shown["effective_sample_size"] == 20
    query = {"where": ["age >= 60", "sex == 'female'"], "column": ["age"], "seed": 3}
    by_get = api.get("researcher", f"/v1/releases/{release}/preview", params=query)
    assert by_get.json()["columns"] == ["age"]
    assert by_get.json()["share_of_release"] == shown["share_of_release"]
    again = api.get(
        "researcher",
        f"/v1/releases/{release}/preview",
        params=query,
        headers={"If-None-Match": by_get.headers["etag"]},
    )
    assert again.status_code == 304
    other = _post(api, release, conditions="age >= 60 and sex == 'female'", seed=4).json()
    assert other["rows"] != shown["rows"]


def test_what_cannot_be_previewed_names_the_field(api, release: str) -> None:
    for field, wanted in (
        ("conditions", {"conditions": ["height > 3"]}),
        ("conditions", {"conditions": ["age < 10 and age > 90"]}),
        ("conditions", {"conditions": ["age > 1"] * 101}),
        ("columns", {"columns": ["height"]}),
        ("seed", {"seed": -1}),
        ("num_patients", {"num_patients": 10**9}),
    ):
        answer = _post(api, release, **wanted)
        assert answer.status_code == 422, wanted
        assert field in {fault["field"].partition(".")[0] for fault in answer.json()["errors"]}
    api.post("operator", f"/v1/releases/{release}/withdraw", {"reason": "x"})
    assert _post(api, release).status_code == 409
    assert _post(api, "sha256:" + "0" * 64).status_code == 404


def _process(api) -> int:
    process = api.client.app.state.previewer._process
    assert process is not None
    return process.pid


def test_a_dead_worker_is_replaced(api, release: str) -> None:
    assert _post(api, release, seed=1).status_code == 200
    os.kill(_process(api), signal.SIGKILL)
    assert _post(api, release, seed=2).status_code == 200


def test_a_worker_that_hangs_is_ended_and_the_api_answers_meanwhile(api, release: str) -> None:
    previewer = api.client.app.state.previewer
    assert _post(api, release, seed=1).status_code == 200
    previewer.seconds = 1.5
    hung = _process(api)
    os.kill(hung, signal.SIGSTOP)
    answers = []
    asking = threading.Thread(target=lambda: answers.append(_ask(api, release, seed=2)))
    asking.start()
    assert api.get("researcher", "/v1/releases").status_code == 200
    assert _post(api, release, seed=1).status_code == 200  # kept
    assert not answers
    asking.join(timeout=60)
    (answer,) = answers
    assert answer.status_code == 503
    assert "1.5 s" in answer.json()["detail"]
    previewer.seconds = 60.0
    assert _post(api, release, seed=3).status_code == 200
    assert _process(api) != hung


def test_more_previews_than_can_wait_are_refused_at_once(store, scenario) -> None:
    release = scenario.release()
    previewer = Previewer(seconds=30)
    previewer._thread = threading.Thread()  # nobody serves
    asked = [previewer.ask(store, release, seed=seed) for seed in range(MAX_WAITING)]
    assert all(isinstance(one, Future) and not one.done() for one in asked)
    with pytest.raises(PreviewUnavailableError, match="too many previews wait"):
        previewer.ask(store, release, seed=MAX_WAITING)
