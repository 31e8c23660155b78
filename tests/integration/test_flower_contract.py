"""What our adapters take for granted of Flower's internals: a new version must fail here first."""

from __future__ import annotations

import ast
import importlib
import inspect
from pathlib import Path

import flwr
import pytest
from flwr.common.constant import ErrorCode, Status, SubStatus
from flwr.supercore.error import ApiErrorCode
from flwr.supercore.error.catalog import API_ERROR_MAP
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supercore.run import RunNotRunningException
from flwr.superlink.grid.http_grid import HttpGrid
from flwr.supernode.nodestate import NodeStateFactory

from client.home import SiteHome
from client.processes import site_processes
from models.exchange import APP_REFUSED_CODE, MESSAGE_TYPES
from server.home import CoordinatorHome
from server.processes import coordinator_processes


def test_the_pinned_version_is_installed() -> None:
    assert flwr.__version__ == "1.41.0"


def test_the_supernodes_loop_takes_nothing_but_sleep_from_time() -> None:
    loop = importlib.import_module("flwr.supernode.start_client_internal")
    tree = ast.parse(inspect.getsource(loop))
    used = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "time"
    }
    pauses = [
        node.args[0].value
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "time.sleep"
        if isinstance(node.args[0], ast.Constant)
    ]
    assert used == {"sleep"}
    assert sorted(pauses) == [0.5, 0.5, 3]  # our pace tells idle from busy by these


def test_flowers_own_error_codes_leave_room_for_ours() -> None:
    codes = [value for name, value in vars(ErrorCode).items() if name.isupper()]
    assert APP_REFUSED_CODE not in codes
    assert (ErrorCode.NODE_UNAVAILABLE, ErrorCode.CLIENT_APP_CRASHED) == (5, 8)


def test_states_of_a_run_are_the_ones_we_name() -> None:
    states = {Status.PENDING, Status.STARTING, Status.RUNNING}
    assert states == {"pending", "starting", "running"}
    assert {SubStatus.COMPLETED, SubStatus.FAILED, SubStatus.STOPPED} == {"completed", "failed", "stopped"}


def test_message_types_have_the_form_that_flower_routes() -> None:
    for message_type in MESSAGE_TYPES.values():
        category, _, action = message_type.partition(".")
        assert category in {"train", "evaluate", "query"}
        assert action.isidentifier()


def test_the_grid_has_what_our_worker_reaches_into() -> None:
    grid = HttpGrid("127.0.0.1:1", insecure=True, token="token")
    assert {"wait_gen_factory", "max_tries"} <= set(vars(grid._retry_invoker))
    assert isinstance(inspect.getattr_static(HttpGrid, "_runtime_client"), property)
    assert list(inspect.signature(grid.pull_messages).parameters) == ["message_ids"]


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("flwr.superlink.grid.http_grid", "pull_objects"),
        ("flwr.supernode.start_client_internal", "pull_objects"),
        ("flwr.supernode.runtime.run_clientapp", "pull_and_inflate_object_from_tree"),
    ],
)
def test_parts_are_pulled_by_a_name_that_we_replace_with_its_own_keywords(module: str, name: str) -> None:
    loaded = importlib.import_module(module)
    calls = [
        {keyword.arg for keyword in node.keywords}
        for node in ast.walk(ast.parse(inspect.getsource(loaded)))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == name
    ]
    assert len(calls) == 1
    original = getattr(loaded, name)
    parameters = inspect.signature(getattr(original, "func", original)).parameters
    assert {"max_time", "initial_backoff", "backoff_cap"} <= set(parameters) - calls[0]


@pytest.mark.parametrize(
    ("function", "parameters"),
    [
        ("pull_task_input", ["client"]),
        ("push_message", ["client", "message", "context"]),
        ("push_task_output", ["client", "context", "sub_status", "details"]),
    ],
)
def test_the_client_apps_steps_can_be_called_one_by_one(function: str, parameters: list[str]) -> None:
    module = importlib.import_module("flwr.supernode.runtime.run_clientapp")
    assert list(inspect.signature(getattr(module, function)).parameters) == parameters


def test_superlink_and_supernode_take_the_arguments_that_we_give(tmp_path: Path) -> None:
    home = CoordinatorHome.create(tmp_path / "lab")
    site = SiteHome.create(
        tmp_path / "site",
        name="site",
        superlink_address=home.superlink_address,
        ca_certificate=home.ca_certificate.read_bytes(),
        coordinator_key=home.verify_key.text,
        data_path="x.csv",
    )
    superlink = importlib.import_module("flwr.superlink.cli.flower_superlink")
    supernode = importlib.import_module("flwr.supernode.cli.flower_supernode")
    (link,) = (spec for spec in coordinator_processes(home) if spec.name == "superlink")
    (node,) = (spec for spec in site_processes(site) if spec.name == "supernode")
    linked = superlink._parse_args_run_superlink().parse_args(link.command[1:])
    assert (linked.host, linked.isolation, linked.insecure) == ("127.0.0.1", "process", False)
    assert linked.enable_supernode_auth
    assert not linked.runtime_dependency_install
    noded = supernode._parse_args_run_supernode().parse_args(node.command[3:])
    assert (noded.host, noded.isolation, noded.insecure) == ("127.0.0.1", "process", False)
    assert not noded.runtime_dependency_install
    assert supernode._try_setup_client_authentication(noded) is not None


def test_the_supernodes_memory_and_its_receiving_step_are_where_we_reach_for_them() -> None:
    loop = importlib.import_module("flwr.supernode.start_client_internal")
    assert "state" in inspect.signature(loop._pull_and_store_message).parameters
    calls = [
        node
        for node in ast.walk(ast.parse(inspect.getsource(loop)))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "_pull_and_store_message"
    ]
    assert [bool(call.args) for call in calls] == [False]  # by keyword
    state = NodeStateFactory(ObjectStoreFactory()).state()
    assert state.msg_store == {}  # type: ignore[attr-defined]
    assert state.get_tasks(statuses=[Status.PENDING]) == []


def test_the_supernodes_loop_hands_its_steps_what_lets_us_end_one_whose_run_is_gone() -> None:
    loop = importlib.import_module("flwr.supernode.start_client_internal")
    assert "get_run" in inspect.signature(loop._pull_and_store_message).parameters
    replying = inspect.signature(loop._push_messages).parameters
    assert list(replying) == ["state", "object_store", "send", "push_object"]
    calls = [
        {keyword.arg for keyword in node.keywords}
        for node in ast.walk(ast.parse(inspect.getsource(loop.start_client_internal)))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "_push_messages"
    ]
    assert calls == [set(replying)]  # by name, as our stand-in takes them
    assert not issubclass(RunNotRunningException, Exception)  # or Flower's own handlers would swallow it
    assert hasattr(ObjectStoreFactory().store(), "delete_objects_in_run")


def test_a_run_that_is_not_running_is_a_403_on_the_fleets_calls_and_a_void_token_a_401() -> None:
    gone = API_ERROR_MAP[ApiErrorCode.FLEET_RUN_STATUS_NOT_ALLOWED]
    void = API_ERROR_MAP[ApiErrorCode.RUNTIME_AUTHENTICATION_FAILED]
    assert (gone.http_status_code, void.http_status_code) == (403, 401)
