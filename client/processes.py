"""A site's processes, for `fedtwin site up`: the SuperNode that talks to the coordinator, and the site's worker."""

from __future__ import annotations

import sys

from client.home import SiteHome
from privacy.cli.serving import process_environment
from privacy.cli.supervisor import WORKER_READY, ProcessSpec


def site_processes(home: SiteHome) -> list[ProcessSpec]:
    """The SuperNode knows no data; the worker alone reads it, and only talks to the SuperNode."""
    environment = process_environment(home.path)
    return [
        ProcessSpec(
            name="supernode",
            command=(
                *(sys.executable, "-m", "client.flower_supernode"),
                *("--superlink", home.superlink_address),
                *("--root-certificates", str(home.ca_certificate)),
                *("--auth-supernode-private-key", str(home.node_key)),
                *("--host", "127.0.0.1", "--port", str(home.supernode_port)),
                *("--isolation", "process", "--superexec-auth-secret-file", str(home.worker_secret)),
            ),
            environment=environment,
            ready_address=("127.0.0.1", home.supernode_port),
            # After a crash the SuperLink lets it in again only when its last heartbeat is 60 s old.
            max_failures=None,
        ),
        ProcessSpec(
            name="worker",
            command=(sys.executable, "-m", "client.worker"),
            environment=environment,
            ready_line=WORKER_READY,
        ),
    ]
