"""What takes seconds of a core, finding a study's noise, is done one at a time and holds up nobody else."""

from __future__ import annotations

import threading
import time
import tomllib
from concurrent.futures import ThreadPoolExecutor

import pytest
from fastapi.testclient import TestClient

from server import studies
from server.api.app import HANDLER_THREADS, create_app
from server.api.slow_work import MAX_WAITING
from server.store import Store


@pytest.fixture
def running(home, facts, clock, api):
    """The application as it runs, with its few threads; calls come at once."""
    app = create_app(store=Store.open(home, clock=clock), starter=api.starter, facts=facts)
    with TestClient(app) as client:
        yield type(api)(client=client, starter=api.starter, keys=api.keys)


def test_many_studies_at_once_leave_the_catalogue_alone(running, study_toml, monkeypatch) -> None:
    definition = tomllib.loads(study_toml)
    begun, go_on, at_once = threading.Semaphore(0), threading.Event(), []
    register = studies.register_study

    def slow(*args, **options):
        at_once.append(threading.current_thread())
        begun.release()
        assert go_on.wait(20)
        return register(*args, **options)

    monkeypatch.setattr(studies, "register_study", slow)
    with ThreadPoolExecutor(MAX_WAITING + 2) as people:
        asked = [
            people.submit(running.post, "operator", "/v1/studies", {**definition, "name": f"study-{number}"})
            for number in range(MAX_WAITING + 1)
        ]
        try:
            assert begun.acquire(timeout=60)
            assert len(asked) > 2 * HANDLER_THREADS
            for _ in range(3):
                assert running.get("researcher", "/v1/releases").status_code == 200
            while running.client.app.state.slow_work._places._value > 0:  # the last of them are on their way
                time.sleep(0.01)
            refused = running.post("operator", "/v1/studies", {**definition, "name": "one-too-many"})
            assert refused.status_code == 503
            assert refused.headers["retry-after"] == "10"
            assert refused.json()["type"] == "urn:fedtwin:problem:unavailable"
            assert len(at_once) == 1
        finally:
            go_on.set()
        assert {one.result().status_code for one in asked} == {201}
    assert len(set(at_once)) == 1
    assert running.post("operator", "/v1/studies", {**definition, "name": "one-more"}).status_code == 201


def test_a_study_that_is_refused_gives_its_place_free(running, study_toml) -> None:
    definition = tomllib.loads(study_toml)
    assert running.post("operator", "/v1/studies", definition).status_code == 201
    for _ in range(MAX_WAITING + 3):
        answer = running.post("operator", "/v1/studies", {**definition, "title": "another"})
        assert answer.status_code == 409
