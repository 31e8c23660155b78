"""How the API hands a run to the round loop, which lives in a Flower ServerApp in another process."""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING, Protocol

from server import run_attempts, runs, sites
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
        self._starting = threading.Lock()

    def start(self, run_id: str) -> str:
        """Start the round loop of a queued run; see `RunStarter`.

        An attempt that was started before, by whoever died before it could note that, is not started again.
        """
        from server.flower_control import Control, ControlError

        with self._starting:
            run = runs.get_run(self._store, run_id)
            if run.flower_run_id is not None:
                return run.flower_run_id
            ticket = {"run": run_attempts.write_ticket(run)}
            try:
                with Control(self._home) as control:
                    self._register(control.register_site)
                    found = control.find_run(ticket)
                    flower_run_id = str(control.start_run(ticket) if found is None else found)
                    noted = run_attempts.note_flower_run(
                        self._store, run_id, flower_run_id, attempt=run.attempt
                    ).flower_run_id
                    if noted != flower_run_id:  # another process was first, or the run is past this attempt
                        control.stop_run(int(flower_run_id))
            except ControlError as error:
                raise StarterError(str(error)) from error
            return noted or flower_run_id

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
        """At once and then until `stopped`: let newly enrolled sites in, start and take up what waits for it."""
        while True:
            try:
                self.admit_sites()
                self.take_up()
            except Exception:
                log.exception("the watch over the federation failed; it goes on")
            if stopped.wait(WATCH_SECONDS):
                return

    def take_up(self) -> None:
        """Start the active run if nobody has, and queue it again if the process that worked on it has died.

        A run that was stopped, here or by Flower's own means, is not taken up: only a person resumes it.
        """
        from server.flower_control import Control, ControlError

        run = runs.active_run(self._store)
        if run is None:
            return
        try:
            if run.flower_run_id is None:
                if run.state == "queued":
                    self.start(run.id)
                return
            with Control(self._home) as control:
                status = control.run_status(int(run.flower_run_id))
        except (ControlError, StarterError) as error:
            self._warn_once(f"run {run.id} waits for the SuperLink: {error}")
            return
        if not status.finished:
            return
        why = f"{status.state} {status.detail}".rstrip()
        if status.was_stopped:
            reason = f"stopped by Flower's own means ({why}); resume the run"
            runs.finish_run(self._store, run.id, "stopped", reason=reason, attempt=run.attempt)
        else:
            run_attempts.restart_run(self._store, run.id, attempt=run.attempt, why=why)

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
