"""Runs are handed to a real SuperLink: away, it says so; back, sites are let in; a dead round loop ends the run."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from fastapi.testclient import TestClient

from privacy.cli.supervisor import Supervisor
from server import run_attempts, runs, sites
from server.api.app import create_app
from server.api.starter import FlowerStarter
from server.flower_control import Control
from server.home import CoordinatorHome
from server.keys import create_key
from server.processes import coordinator_processes
from server.store import Store
from server.tables import RunRow


@pytest.fixture
def superlink(own_home) -> Iterator[Supervisor]:
    home: CoordinatorHome = own_home[0]
    specs = [spec for spec in coordinator_processes(home) if spec.name == "superlink"]
    supervisor = Supervisor(specs, home.logs)
    yield supervisor
    supervisor.stop()


def _node_key() -> str:
    key = ec.generate_private_key(ec.SECP384R1()).public_key()
    return key.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH).decode()


@pytest.mark.parametrize("own_home", [{"superlink_port": None}], indirect=True)
def test_a_run_meets_a_superlink_that_is_away_and_one_whose_run_dies(own_home, superlink) -> None:
    home, scenario = own_home
    store = scenario.store
    scenario.register()
    for name, key in scenario.keys.items():
        sites.enrol_site(
            store,
            name=name,
            receipt_key=key.public.text,
            node_public_key=_node_key(),
            policy={"epsilon_total": None},
        )
    starter = FlowerStarter(home, store)
    client = TestClient(create_app(store=store, starter=starter), raise_server_exceptions=False)
    key = create_key(store, role="operator", owner="olga").text
    client.headers["Authorization"] = f"Bearer {key}"

    starter.admit_sites()  # nobody answers yet: a warning in the log, and later again
    away = client.post("/v1/runs", json={"study": "heart"})
    assert away.status_code == 503
    assert "no SuperLink answers" in away.json()["detail"]
    assert client.get("/v1/runs").json()["items"][0]["state"] == "failed"

    superlink.start()
    superlink.wait_until_ready(90)
    starter.admit_sites()
    node_ids = {site.name: site.node_id for site in sites.list_sites(store)}
    assert all(node_ids.values())
    with Control(home) as control:
        assert {str(node.node_id): node.site for node in control.nodes()} == {
            n: s for s, n in node_ids.items()
        }

    run = client.post("/v1/runs", json={"study": "heart"}).json()["id"]
    assert {site.name: site.node_id for site in sites.list_sites(store)} == node_ids
    flower_run = runs.get_run(store, run).flower_run_id
    starter.take_up()
    waiting = runs.get_run(store, run)
    assert (waiting.state, waiting.flower_run_id) == ("queued", flower_run)  # the worker comes for it
    with Control(home) as control:
        control.stop_run(int(flower_run))
    starter.take_up()
    ended = runs.get_run(store, run)
    assert ended.state == "stopped"
    assert "resume the run" in ended.reason
    starter.take_up()
    assert runs.get_run(store, run).state == "stopped"  # a person stopped it: only a person resumes it
    assert client.post(f"/v1/runs/{run}/resume").json()["state"] == "queued"
    assert runs.get_run(store, run).flower_run_id != flower_run

    client.post(f"/v1/runs/{run}/stop")
    assert client.put("/v1/sites/west/state", json={"state": "left"}).json()["node_id"] is None
    with Control(home) as control:
        assert {node.site for node in control.nodes() if node.status != "unregistered"} == {"north", "south"}
    assert client.put("/v1/sites/west/state", json={"state": "enrolled"}).status_code == 409

    _a_run_outlives_its_starter(home, store, starter)


def _a_run_outlives_its_starter(home: CoordinatorHome, store: Store, starter: FlowerStarter) -> None:
    # The API died after it had queued the run: the next one starts it, once, however often it looks.
    run = runs.create_run(store, "heart", started_by="olga")
    starter.take_up()
    started = runs.get_run(store, run.id)
    assert started.flower_run_id is not None
    starter.take_up()
    assert starter.start(run.id) == started.flower_run_id
    with Control(home) as control:
        assert control.find_run({"run": run_attempts.write_ticket(run)}) == int(started.flower_run_id)

    # Its round loop dies: it is queued and started again by itself, in another Flower run.
    runs.start_running(store, run.id, attempt=1, flower_run_id=started.flower_run_id)
    assert run_attempts.restart_run(store, run.id, attempt=1, why="killed").state == "queued"
    # The API dies between starting that Flower run and noting it: the next one finds and adopts it.
    with Control(home) as control:
        orphan = control.start_run({"run": run_attempts.write_ticket(runs.get_run(store, run.id))})
    starter.take_up()
    assert runs.get_run(store, run.id).flower_run_id == str(orphan)

    # A SuperLink that has forgotten it all: the run is taken up again, too.
    with store.database.write() as session:
        session.get(RunRow, run.id).flower_run_id = "12345"
    starter.take_up()
    assert (runs.get_run(store, run.id).state, runs.get_run(store, run.id).attempt) == ("queued", 3)
    starter.take_up()
    assert runs.get_run(store, run.id).flower_run_id not in {None, "12345", str(orphan)}
    runs.request_stop(store, run.id)
