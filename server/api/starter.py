"""How the API hands a run to the round loop, which lives in a Flower ServerApp in another process."""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING, Literal, Protocol

from server import runs, sites
from server.store import Store

if TYPE_CHECKING:
    from server.home import CoordinatorHome

WATCH_SECONDS = 2.0

log = logging.getLogger("fedtwin.api")


class StarterError(Exception):
    """The federation does not answer; nothing was started."""


class RunStarter(Protocol):
    """Starts runs and lets enrolled sites' nodes in."""

    def start(self, run_id: str) -> str:
        """Start the round loop of a queued run.

        Returns:
            The federation's own id of the run.

        Raises:
            StarterError: it could not be started.
        """

    def admit_sites(self) -> None:
        """Let the nodes of enrolled sites connect and shut out those that left; later if nobody answers."""


class FlowerStarter:
    """Starts runs through the SuperLink's control interface.

    Args:
        home: the coordinator's, for the SuperLink's address and certificate.
        store: for the enrolled sites.
    """

    def __init__(self, home: CoordinatorHome, store: Store) -> None:
        self._home = home
        self._store = store
        self._told = ""

    def start(self, run_id: str) -> str:
        """Start the round loop of a queued run; see `RunStarter`."""
        from server.flower_control import Control, ControlError

        try:
            with Control(self._home) as control:
                self._register(control.register_site)
                return str(control.start_run({"run": run_id}))
        except ControlError as error:
            raise StarterError(str(error)) from error

    def admit_sites(self) -> None:
        """Let nodes of enrolled sites in, and those of sites that left out; see `RunStarter`."""
        from server.flower_control import Control, ControlError

        if not self._pending():
            return
        try:
            with Control(self._home) as control:
                self._register(control.register_site)
                for site in sites.list_sites(self._store, state="left"):
                    if site.node_id is not None:
                        control.remove_site(int(site.node_id))
                        sites.set_node_id(self._store, site.name, None)
        except ControlError as error:
            self._warn_once(f"sites' nodes are let in or out once the SuperLink answers: {error}")

    def watch(self, stopped: threading.Event) -> None:
        """Until `stopped`: let newly enrolled sites in, and end runs whose round loop died."""
        while not stopped.wait(WATCH_SECONDS):
            try:
                self.admit_sites()
                self.end_orphans()
            except Exception:
                log.exception("the watch over the federation failed; it goes on")

    def end_orphans(self) -> None:
        """End the active run if the process that worked on it has ended without saying so."""
        from server.flower_control import Control, ControlError

        run = runs.active_run(self._store)
        if run is None or run.flower_run_id is None:
            return
        try:
            with Control(self._home) as control:
                status = control.run_status(int(run.flower_run_id))
        except (ControlError, KeyError) as error:
            self._warn_once(f"run {run.id} cannot be looked up: {error}")
            return
        again = runs.active_run(self._store)
        if status.finished and again is not None and again.flower_run_id == run.flower_run_id:
            state: Literal["stopped", "failed"] = "stopped" if run.stop_requested else "failed"
            reason = (
                f"the round loop ended early ({status.state} {status.detail}".rstrip() + "); resume the run"
            )
            runs.finish_run(self._store, run.id, state, reason=reason)

    def _pending(self) -> bool:
        """Whether a node is still to be let in or out."""
        return any(
            (site.state == "enrolled" and site.node_id is None)
            or (site.state == "left" and site.node_id is not None)
            for site in sites.list_sites(self._store)
        )

    def _warn_once(self, text: str) -> None:
        """The watch comes by every two seconds; the log wants to hear of a change only."""
        if text != self._told:
            log.warning("%s", text)
            self._told = text

    def _register(self, register: _Register) -> None:
        for site in sites.list_sites(self._store, state="enrolled"):
            node_id = str(register(site.name, site.node_public_key))
            if node_id != site.node_id:
                sites.set_node_id(self._store, site.name, node_id)


class _Register(Protocol):
    def __call__(self, name: str, node_public_key: str) -> int: ...
