"""`python -m server.gateway_check`: whether the public port, the API and the SuperLink behind it answer.

For a container's health check and for monitoring: it dials the gateway as a site would, with the coordinator's
own authority. FEDTWIN_HOME names the home. Exit status 0, or 1 with the reason on the error stream.
"""

from __future__ import annotations

import os
import ssl
import sys
from pathlib import Path

import httpx

from privacy.cli.proxies import loopback_of
from server.home import CoordinatorHome

TIMEOUT_SECONDS = 5


def check_gateway(home: CoordinatorHome) -> str | None:
    """What is wrong, in a sentence; None if nothing is."""
    trust = ssl.create_default_context(cafile=str(home.ca_certificate))
    trust.check_hostname = False  # it dials the loopback interface, which is not always in the certificate
    host = loopback_of(home.gateway.host)
    base = f"https://{f'[{host}]' if ':' in host else host}:{home.gateway.port}"
    try:
        with httpx.Client(verify=trust, timeout=TIMEOUT_SECONDS, trust_env=False, base_url=base) as client:
            api = client.get("/v1/health").status_code
            fleet = client.post("/v1/fleet/pull-messages").status_code
    except httpx.HTTPError as error:
        return f"the gateway at {base} does not answer ({type(error).__name__})"
    if api != 200:
        return f"the API answers {api}"
    # Without a node's signature the SuperLink refuses with a 4xx, which says that it is there.
    return f"the SuperLink answers {fleet}" if fleet >= 500 or fleet == 404 else None


def main() -> None:
    """Print what is wrong and exit 1, or exit 0."""
    fault = check_gateway(CoordinatorHome.open(Path(os.environ["FEDTWIN_HOME"])))
    if fault is not None:
        sys.exit(fault)


if __name__ == "__main__":
    main()
