"""The `fedtwin` command: finds its groups by entry point and imports only the one that is asked for."""

from __future__ import annotations

import os
import sys
from importlib.metadata import EntryPoint, entry_points

SUMMARIES = {
    "demo": "Three hospitals train one generator on real data on this machine, and a cohort arrives.",
    "site": "A hospital: create, check, start and stop a site; see what it spent.",
    "server": "The coordinator: create, start and stop it; enrol sites; make API keys.",
    "study": "Studies and their runs: define, start, watch, stop, release.",
    "cohort": "A researcher: request synthetic patients from a release and download them.",
    "audit": "An auditor: verify a ledger export offline.",
}


def main() -> None:
    """Run `fedtwin GROUP ...`; exits with the group's status."""
    arguments = sys.argv[1:]
    if not arguments or arguments[0] in {"-h", "--help"}:
        print(_usage())
        raise SystemExit(0 if arguments else 2)
    if arguments[0] in {"-V", "--version"}:
        from importlib.metadata import version

        print(f"fedtwin {version('fedtwin')}")
        return
    group = arguments[0]
    if group not in SUMMARIES:
        print(f"fedtwin: there is no group {group!r}.\n\n{_usage()}", file=sys.stderr)
        raise SystemExit(2)
    from privacy.cli.rooms import check_rooms

    check_rooms()
    # Typer's own tracebacks print local values, and those hold keys and patients.
    os.environ.setdefault("TYPER_STANDARD_TRACEBACK", "1")
    app = _entry_point(group).load()
    sys.argv = [f"fedtwin {group}", *arguments[1:]]
    app(prog_name=f"fedtwin {group}")


def _entry_point(group: str) -> EntryPoint:
    found = list(entry_points(group="fedtwin.commands", name=group))
    if not found:
        raise SystemExit(f"fedtwin: the group {group!r} is not installed; reinstall fedtwin.")
    return found[0]


def _usage() -> str:
    rows = "\n".join(f"  {name:<8} {text}" for name, text in SUMMARIES.items())
    return (
        "Usage: fedtwin GROUP [COMMAND] [OPTIONS]\n\n"
        "Federated digital twins under differential privacy.\n\n"
        f"Groups:\n{rows}\n\nEach group and command has --help. Version: fedtwin --version"
    )
