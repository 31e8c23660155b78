"""What both sides' processes know of the network: never to ask a proxy for this machine itself."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping

LOOPBACK = ("127.0.0.1", "localhost", "::1")


def without_proxy(environment: Mapping[str, str]) -> dict[str, str]:
    """`NO_PROXY`, in both spellings, with this machine added: what is set for `HTTPS_PROXY` stays in force.

    A worker and its SuperNode talk over loopback; with `HTTP_PROXY` or `ALL_PROXY` set, and this machine not in
    `NO_PROXY`, their tokens would go to the hospital's proxy. Where both spellings are set, the small one counts,
    as it does for the libraries.

    Args:
        environment: that of the person who starts the processes.
    """
    given = environment.get("no_proxy", environment.get("NO_PROXY", ""))
    hosts = [host.strip() for host in given.split(",") if host.strip()]
    value = ",".join(dict.fromkeys([*hosts, *LOOPBACK]))
    return {"NO_PROXY": value, "no_proxy": value}


def loopback_of(host: str) -> str:
    """Where a process on this machine reaches one that listens on `host`: a wildcard is no address to dial."""
    return {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104


def is_this_machine(host: str | None) -> bool:
    """Whether a host is the loopback interface by its name or number; nothing is looked up."""
    try:
        return host == "localhost" or ipaddress.ip_address(host or "").is_loopback
    except ValueError:
        return False
