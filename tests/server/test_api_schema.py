"""The API against its own OpenAPI document: whatever is sent, no 5xx, no answer that the document does not describe.

Schemathesis makes the requests, well-formed and not, for every role, about things that there are and things that there
are not; then in sequences, where one answer leads to the next request. A fast sample runs always, more with slow.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Flaky

from server import jobs
from server.allowances import Allowances
from server.api.invitations import WrongAnswers
from server.keys import create_key

schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is in the dev extra")
checks = pytest.importorskip("schemathesis.checks")
ROLES = ("operator", "researcher", "auditor")
# What a key may see, and what there is, are not what a schema can know.
CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
)
FAST, LONG = 4, 120
FOR_GOOD = ("/withdraw", "/leave", "/stop", "/state", "/current/rotate")


@pytest.fixture
def database_url(tmp_path) -> str:
    return f"sqlite:///{tmp_path / 'fedtwin.db'}"


@pytest.fixture
def home(home):
    home.allowances = Allowances(requests_per_minute=10**9, preview_seconds=5)
    return home


class Target:
    """The application with a release, a finished cohort, and names of things that there are."""

    def __init__(self, api: Any, scenario: Any) -> None:
        self.api, self.store = api, scenario.store
        release = scenario.release()
        made, self.doomed = (self._cohort(release.digest) for _ in range(2))
        for counter in ("wrong_answers", "wrong_secrets"):
            setattr(api.client.app.state, counter, WrongAnswers(most=10**9))
        self.names = {
            "digest": release.digest,
            "release": release.digest,
            "cohort_id": made,
            "run_id": release.run,
            "study": "heart",
            "prefix": "current",
        }
        self.answers: Counter[tuple[str, str, int]] = Counter()

    def _cohort(self, release: str) -> str:
        made = self.api.post("researcher", "/v1/cohorts", {"release": release, "num_patients": 20}).json()
        assert jobs.make_next(self.store)
        return str(made["id"])

    @property
    def schema(self) -> Any:
        return schemathesis.openapi.from_asgi("/openapi.json", self.api.client.app)

    def send(self, case: Any, role: str) -> Any:
        key = create_key(self.store, role=role, owner=role).text  # the one before may have been revoked
        case.headers = {**(case.headers or {}), "Authorization": f"Bearer {key}"}
        answer = case.call()
        # "Come back in a moment" is an answer that the document promises: a preview whose process starts.
        later = answer.status_code == 503 and "retry-after" in answer.headers
        case.validate_response(
            answer, checks=[one for one in _chosen() if not (later and one.__name__ == CHECKS[0])]
        )
        self.answers[case.method, case.path, answer.status_code] += 1
        return answer

    def make_real(self, case: Any) -> None:
        """Let the request speak of what there is."""
        if not case.path.endswith(FOR_GOOD):
            for name in case.path_parameters or {}:
                kind = {"/v1/studies": "heart", "/v1/sites": "north", "/v1/enrolments": "north"}
                real = (
                    "cohort.csv"
                    if "/files/" in case.path
                    else kind.get(case.path.partition("/{")[0], "heart")
                )
                case.path_parameters[name] = self.names.get(name, real)
                if case.method == "DELETE" and name == "cohort_id":
                    case.path_parameters[name] = self.doomed  # the other's files are asked for later
        if isinstance(case.body, dict):
            for name in {"release", "study"} & set(case.body):
                case.body[name] = self.names[name]


def _chosen() -> list[Callable[..., Any]]:
    checks.load_all_checks()
    found = [check for check in checks.CHECKS.get_all() if check.__name__ in CHECKS]
    assert len(found) == len(CHECKS)
    return found


def _settings(examples: int, *, derandomize: bool = True, **more: Any) -> settings:
    return settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=derandomize,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
        **more,
    )


@pytest.fixture
def target(api, scenario) -> Iterator[Target]:
    return Target(api, scenario)


def _attack(target: Target, examples: int) -> None:
    for result in target.schema.get_all_operations():
        turn = 0

        def send(case: Any) -> None:
            nonlocal turn
            turn += 1
            if turn % 2:
                target.make_real(case)
            for role in ROLES:
                target.send(case, role)

        _settings(examples)(given(result.ok().as_strategy())(send))()


def test_a_sample_of_requests_to_every_operation_meets_the_document(target: Target) -> None:
    _attack(target, FAST)
    reached = {(method, path) for method, path, status in target.answers if status < 300}
    for expected in (
        ("GET", "/v1/releases/{digest}"),
        ("GET", "/v1/cohorts/{cohort_id}"),
        ("GET", "/v1/cohorts/{cohort_id}/files/{name}"),
        ("POST", "/v1/cohorts"),
        ("POST", "/v1/keys"),
    ):
        assert expected in reached  # not only refusals were seen


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_many_requests_to_every_operation_meet_the_document(target: Target) -> None:
    _attack(target, int(os.environ.get("FEDTWIN_EXAMPLES", LONG)))


def _walk(target: Target, runs: int, steps: int) -> None:
    """Sequences in which one answer's names go into the next request; what is there changes from run to run."""
    machine = target.schema.as_state_machine()
    faults: list[Exception] = []

    class Walk(machine):  # type: ignore[misc, valid-type]
        def call(self, case: Any, **options: Any) -> Any:
            try:
                return target.send(case, "operator")
            except Exception as error:
                faults.append(error)
                raise

        def validate_response(self, response: Any, case: Any, **options: Any) -> None:
            """It was validated when it came."""

    for _ in range(runs):
        # Hypothesis calls a server that remembers "flaky"; what matters is that no answer broke the document.
        with suppress(Flaky):
            Walk.run(settings=_settings(4, derandomize=False, stateful_step_count=steps))
        assert not faults, faults[0]


def test_a_sequence_of_requests_meets_the_document(target: Target) -> None:
    _walk(target, 2, 10)
    # An answer led to the next request.
    assert any(status < 300 and "{" in path for _, path, status in target.answers)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_long_sequences_of_requests_meet_the_document(target: Target) -> None:
    _walk(target, 60, 30)
