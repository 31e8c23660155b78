"""The SuperLink's control interface: start, stop and follow runs, register sites. All that the API needs of Flower.

A run's messages are `server.flower_adapter`'s; the worker that is given the run is `server.flower_worker`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import httpx
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_public_key
from flwr.common.constant import Status, SubStatus
from flwr.common.serde import fab_to_proto, user_config_from_proto, user_config_to_proto
from flwr.proto.control_pb2 import (
    ListNodesRequest,
    ListRunsRequest,
    RegisterNodeRequest,
    StartRunRequest,
    StopRunRequest,
    UnregisterNodeRequest,
)
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.error import ApiErrorCode, FlowerError
from flwr.supercore.fab import Fab
from flwr.supercore.primitives.asymmetric import public_key_to_bytes

from server.bundle import digest_of_bundle
from server.home import CoordinatorHome

LOST = "lost"
RECENT_RUNS = 50


class ControlError(RuntimeError):
    """The SuperLink refused, or does not answer.

    Attributes:
        code: Flower's number for it, where it gave one.
    """

    def __init__(self, reason: str, *, code: int | None = None) -> None:
        super().__init__(reason)
        self.code = code


@dataclass(frozen=True, kw_only=True)
class NodeStatus:
    """A registered site as the SuperLink sees it.

    Attributes:
        node_id: Flower's name for it.
        site: the name it was registered with.
        status: `registered`, `online`, `offline` or `unregistered`.
    """

    node_id: int
    site: str
    status: str


@dataclass(frozen=True, kw_only=True)
class RunStatus:
    """A Flower run: `pending`, `starting`, `running`, `completed`, `failed`, `stopped` or `lost`, and why.

    `lost` is one that the SuperLink does not know: its database is another one than when the run was started.
    """

    state: str
    detail: str = ""

    @property
    def finished(self) -> bool:
        """Whether nothing more will happen in it."""
        return self.state in {SubStatus.COMPLETED, SubStatus.FAILED, SubStatus.STOPPED, LOST}

    @property
    def was_stopped(self) -> bool:
        """Whether somebody stopped it by Flower's own means."""
        return self.state == SubStatus.STOPPED


class Control:
    """The SuperLink's control interface on the coordinator's own machine. A context manager.

    Raises (from every method):
        ControlError: the SuperLink refused, or does not answer.
    """

    def __init__(self, home: CoordinatorHome) -> None:
        self._home = home
        self._client = ControlHttpClient.from_server_address(
            server_address=f"127.0.0.1:{home.superlink_port}",
            insecure=False,
            root_certificates=home.ca_certificate.read_bytes(),
            interceptors=[],
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def start_run(self, run_config: Mapping[str, Any]) -> int:
        """Start a run of this coordinator's app.

        Args:
            run_config: `{"run": ID}`; only keys that the app has.

        Returns:
            Flower's id of the run.
        """
        bundle = self._home.app_bundle.read_bytes()
        request = StartRunRequest(
            fab=fab_to_proto(Fab(digest_of_bundle(bundle), bundle, {})),
            override_config=user_config_to_proto(dict(run_config)),
        )
        return int(self._call(self._client.StartRun, request).run_id)

    def stop_run(self, run_id: int) -> bool:
        """Stop a run; False when it had already ended."""
        if self.run_status(run_id).finished:
            return False
        return bool(self._call(self._client.StopRun, StopRunRequest(run_id=run_id)).success)

    def run_status(self, run_id: int) -> RunStatus:
        """How a run stands."""
        try:
            runs = self._call(self._client.ListRuns, ListRunsRequest(run_id=run_id)).run_dict
        except ControlError as error:
            if error.code == ApiErrorCode.RUN_ID_NOT_FOUND:
                return RunStatus(state=LOST, detail="the SuperLink does not know it")
            raise
        return _status_of(runs[run_id])

    def find_run(self, run_config: Mapping[str, Any]) -> int | None:
        """The unfinished run that was started with this configuration, if there is one among the newest."""
        found = self._call(self._client.ListRuns, ListRunsRequest(limit=RECENT_RUNS)).run_dict
        for run_id, run in found.items():
            same = user_config_from_proto(run.override_config) == dict(run_config)
            if same and not _status_of(run).finished:
                return int(run_id)
        return None

    def register_site(self, name: str, node_public_key: str) -> int:
        """Let a site's SuperNode in; the same name and key again changes nothing.

        Args:
            name: the site's name.
            node_public_key: ECDSA key in OpenSSH's format (`ecdsa-sha2-nistp384 AAAA...`).

        Returns:
            Flower's id of the node.
        """
        key = load_ssh_public_key(node_public_key.encode())
        if not isinstance(key, ec.EllipticCurvePublicKey):
            raise ControlError(f"the node key of {name} is not an ECDSA key; send the site's keys/node.pub")
        encoded = public_key_to_bytes(key)
        for node in self._call(self._client.ListNodes, ListNodesRequest()).nodes_info:
            if node.status != "unregistered" and node.public_key == encoded and node.name == name:
                return int(node.node_id)
        request = RegisterNodeRequest(public_key=encoded, name=name)
        return int(self._call(self._client.RegisterNode, request).node_id)

    def remove_site(self, node_id: int) -> None:
        """Shut a node out."""
        self._call(self._client.UnregisterNode, UnregisterNodeRequest(node_id=node_id))

    def nodes(self) -> list[NodeStatus]:
        """Every registered site."""
        found = self._call(self._client.ListNodes, ListNodesRequest()).nodes_info
        return [NodeStatus(node_id=int(one.node_id), site=one.name, status=one.status) for one in found]

    def _call(self, method: Callable[[Any], Any], request: Any) -> Any:
        try:
            return method(request)
        except httpx.HTTPStatusError as error:
            known = FlowerError.from_json(error.response.text)
            reason = known.message if known is not None else f"HTTP {error.response.status_code}"
            code = None if known is None else int(known.code)
            raise ControlError(f"the SuperLink refused: {reason}", code=code) from error
        except httpx.TransportError as error:
            raise ControlError(
                f"no SuperLink answers at 127.0.0.1:{self._home.superlink_port}; "
                "start it with `fedtwin server up`"
            ) from error


def _status_of(run: Any) -> RunStatus:
    status = run.status
    state = status.sub_status if status.status == Status.FINISHED else status.status
    return RunStatus(state=state, detail=status.details)
