"""The coordinator's processes, for `fedtwin server up` and the demo."""

from __future__ import annotations

import sys
import sysconfig
from pathlib import Path

from privacy.cli.proxies import loopback_of
from privacy.cli.serving import process_environment
from privacy.cli.supervisor import WORKER_READY, ProcessSpec
from server.home import CoordinatorHome


def coordinator_processes(home: CoordinatorHome) -> list[ProcessSpec]:
    """SuperLink, the worker that runs the round loop, the API, its public gateway, and the cohort worker."""
    environment = process_environment(home.path)
    superlink = Path(sysconfig.get_path("scripts")) / "flower-superlink"
    return [
        ProcessSpec(
            name="superlink",
            command=(str(superlink), *_superlink_arguments(home)),
            environment=environment,
            ready_address=("127.0.0.1", home.superlink_port),
        ),
        ProcessSpec(
            name="worker",
            command=(sys.executable, "-m", "server.worker"),
            environment=environment,
            ready_line=WORKER_READY,
            after=("superlink",),
        ),
        ProcessSpec(
            name="api",
            command=(
                *(sys.executable, "-m", "uvicorn", "--factory", "server.api.app:create_app"),
                *("--host", home.api_host, "--port", str(home.api_port)),
                *("--timeout-graceful-shutdown", "3"),  # open event streams would hold it up for ever
            ),
            environment=environment,
            ready_address=(home.api_host, home.api_port),
        ),
        ProcessSpec(
            name="gateway",
            command=(sys.executable, "-m", "server.gateway"),
            environment=environment,
            ready_address=(loopback_of(home.gateway.host), home.gateway.port),
        ),
        ProcessSpec(
            name="jobs",
            command=(sys.executable, "-m", "server.jobs"),
            environment=environment,
            ready_line=WORKER_READY,
        ),
    ]


def _superlink_arguments(home: CoordinatorHome) -> tuple[str, ...]:
    """TLS, registered nodes only, loopback, state in a file, runs only for who knows the secret."""
    return (
        *("--ssl-ca-certfile", str(home.ca_certificate)),
        *("--ssl-certfile", str(home.server_certificate)),
        *("--ssl-keyfile", str(home.server_key)),
        *("--host", "127.0.0.1", "--port", str(home.superlink_port)),
        *("--database", str(home.superlink_database)),
        *("--isolation", "process", "--superexec-auth-secret-file", str(home.superexec_secret)),
        *("--enable-supernode-auth", "--disable-runtime-dependency-installation"),
    )
