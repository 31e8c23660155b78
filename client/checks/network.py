"""Checks of the way to the coordinator: its name, the pinned authority, the certificate, the clocks, the local port.

Proxy variables (HTTPS_PROXY, NO_PROXY) count, as they do for the site's processes.
"""

from __future__ import annotations

import datetime as dt
import socket
import ssl
import urllib.request
from base64 import b64encode
from collections.abc import Callable
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from http.client import HTTPConnection, HTTPException
from urllib.parse import SplitResult, unquote, urlsplit

from client.checks.result import CheckResult, failed, passed
from client.home import SiteHome
from privacy.cli.proxies import is_this_machine

TIMEOUT_SECONDS = 10.0
MAX_CLOCK_SECONDS = 60.0
MIN_CERTIFICATE_DAYS = 14
NAMES = ("name", "connection", "certificate", "clock")


@dataclass(frozen=True, kw_only=True)
class _Seen:
    """What a TLS connection showed.

    Attributes:
        not_after: end of the server certificate.
        date: the coordinator's time, where it said so.
        asked_at: this machine's time, halfway between question and answer.
    """

    not_after: dt.datetime
    date: dt.datetime | None
    asked_at: dt.datetime


def check_coordinator(
    site: SiteHome, *, clock: Callable[[], dt.datetime] = lambda: dt.datetime.now(dt.UTC)
) -> list[CheckResult]:
    """Name, connection, certificate and clock, in this order; what follows a failure says that it was not checked.

    Args:
        clock: this machine's time, aware.
    """
    host, port = _parts(site.superlink_address)
    proxy = _proxy_for(host)
    results = [check_name(host, proxy)]
    if results[-1].passed:
        seen = _look(site, host, port, proxy, clock)
        if isinstance(seen, CheckResult):
            results.append(seen)
        else:
            way = f" through the proxy {proxy.hostname}" if proxy else ""
            results.append(passed("connection", f"{site.superlink_address}, under the pinned authority{way}"))
            results += [check_certificate(seen.not_after, now=clock()), check_clock(seen.date, seen.asked_at)]
    return results + [
        failed(name, "not checked", f"first put right: {results[-1].name}") for name in NAMES[len(results) :]
    ]


def check_name(host: str, proxy: SplitResult | None = None) -> CheckResult:
    """The coordinator's name, or the proxy's on the way to it, is known here."""
    asked = proxy.hostname or "" if proxy else host
    try:
        addresses = {found[4][0] for found in socket.getaddrinfo(asked, None)}
    except OSError:
        return failed(
            "name",
            f"nobody here knows the {'proxy' if proxy else 'host'} {asked!r}",
            "correct HTTPS_PROXY"
            if proxy
            else "ask your network's people for DNS, or correct coordinator.address",
        )
    return passed("name", f"{asked} is {', '.join(sorted(map(str, addresses)))}")


def check_certificate(not_after: dt.datetime, *, now: dt.datetime) -> CheckResult:
    """The coordinator's certificate does not run out in the next days."""
    days = (not_after - now).days
    if days < MIN_CERTIFICATE_DAYS:
        return failed(
            "certificate",
            f"the coordinator's certificate is good until {not_after:%Y-%m-%d}, {days} days",
            "ask the operator to renew it; the authority that you pinned can stay",
        )
    return passed("certificate", f"good until {not_after:%Y-%m-%d}")


def check_clock(date: dt.datetime | None, asked_at: dt.datetime) -> CheckResult:
    """This machine's clock and the coordinator's agree to a minute: signatures carry times."""
    if date is None:
        return passed("clock", "not known: the coordinator does not say its time")
    seconds = abs((asked_at - date).total_seconds())
    if seconds > MAX_CLOCK_SECONDS:
        return failed(
            "clock",
            f"{seconds:.0f} s away from the coordinator's",
            "let this machine's clock be set by NTP; if it is, tell the operator",
        )
    return passed("clock", f"within {MAX_CLOCK_SECONDS:.0f} s of the coordinator's")


def check_port(site: SiteHome) -> CheckResult:
    """The loopback port between the SuperNode and the worker is free."""
    try:
        with socket.socket() as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(("127.0.0.1", site.supernode_port))
    except OSError:
        return failed(
            "port",
            f"port {site.supernode_port} is taken on this machine",
            "if that is this very site, it is up and all is well; if not, change supernode.port in site.toml",
        )
    return passed("port", f"{site.supernode_port} is free")


def _look(
    site: SiteHome, host: str, port: int, proxy: SplitResult | None, clock: Callable[[], dt.datetime]
) -> _Seen | CheckResult:
    """Open a TLS connection under the pinned authority alone and ask for the time."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        context.load_verify_locations(cafile=str(site.ca_certificate))
    except (OSError, ssl.SSLError):
        return failed(
            "connection",
            f"{site.ca_certificate.name} is no certificate",
            "get the coordinator's authority from the operator again, and compare its fingerprint",
        )
    try:
        with _dial(host, port, proxy) as plain, context.wrap_socket(plain, server_hostname=host) as secure:
            certificate = secure.getpeercert() or {}
            before = clock()
            secure.sendall(
                f"GET /v1/health HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode(
                    "ascii", "replace"
                )
            )
            date = _date_in(secure.makefile("rb"))
            between = before + (clock() - before) / 2
    except ssl.SSLCertVerificationError as error:
        return failed(
            "connection",
            f"{site.superlink_address} shows a certificate that is not believed: {error.verify_message}",
            "if it is not valid yet or no longer, look at this machine's clock; if not, somebody is in between "
            "(a proxy that opens TLS?): ask the operator for the fingerprint",
        )
    except (OSError, HTTPException) as error:
        return failed(
            "connection",
            f"{site.superlink_address} does not answer ({type(error).__name__})",
            "let this machine out to that address over TCP, or set HTTPS_PROXY; is the coordinator up?",
        )
    end = dt.datetime.fromtimestamp(ssl.cert_time_to_seconds(str(certificate["notAfter"])), dt.UTC)
    return _Seen(not_after=end, date=date, asked_at=between)


def _dial(host: str, port: int, proxy: SplitResult | None) -> socket.socket:
    if proxy is None:
        return socket.create_connection((host, port), timeout=TIMEOUT_SECONDS)
    connection = HTTPConnection(proxy.hostname or "", proxy.port or 80, timeout=TIMEOUT_SECONDS)
    headers = {}
    if proxy.username:
        user = f"{unquote(proxy.username)}:{unquote(proxy.password or '')}"
        headers["Proxy-Authorization"] = "Basic " + b64encode(user.encode()).decode()
    connection.set_tunnel(host, port, headers)
    connection.connect()
    return connection.sock


def _date_in(answer: object) -> dt.datetime | None:
    """The Date header among the first lines; None where there is none, or it is none."""
    for _ in range(100):
        line = answer.readline(8192)  # type: ignore[attr-defined]
        name, _, value = line.partition(b":")
        if name.strip().lower() == b"date":
            try:
                found = parsedate_to_datetime(value.decode("latin-1").strip())
            except ValueError:
                return None
            return found.astimezone(dt.UTC) if found.tzinfo else None
        if not line.strip():
            return None
    return None


def _parts(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def _proxy_for(host: str) -> SplitResult | None:
    found = urllib.request.getproxies().get("https")
    if not found or is_this_machine(host) or urllib.request.proxy_bypass(host):
        return None
    return urlsplit(found if "://" in found else f"http://{found}")
