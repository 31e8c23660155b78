"""Joining a federation: what the coordinator says is held against the invitation before anything is sent to it.

The certificate authority is pinned by the fingerprint in the invitation, the ledger's key by its digest. The
invitation's secret goes out only over TLS under that authority, or to this machine. Private keys go nowhere.
"""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from cryptography import x509
from cryptography.hazmat.primitives import hashes

from privacy.cli.proxies import is_this_machine
from privacy.invitation import Invitation, ledger_key_digest

if TYPE_CHECKING:
    import httpx

TIMEOUT_SECONDS = 20.0
MAX_ANSWER_BYTES = 1 << 20


class JoinError(Exception):
    """Why a site cannot join, and what to do."""


@dataclass(frozen=True, kw_only=True)
class Federation:
    """What a site pins of a federation.

    Attributes:
        coordinator: its name.
        superlink_address: host:port that the site's node dials.
        api_url: where the API is; empty where nobody said.
        ca_certificate: PEM of the authority.
        ledger_key: text of the key that signs the ledger.
        app_digest: of the app bundle that the policy will allow.
    """

    coordinator: str
    superlink_address: str
    api_url: str
    ca_certificate: str
    ledger_key: str
    app_digest: str

    @classmethod
    def from_dict(cls, told: Mapping[str, Any]) -> Federation:
        """Read `federation.json` or GET /v1/federation.

        Raises:
            JoinError: a part is missing or is no text.
        """
        names = ("superlink_address", "ca_certificate", "ledger_key", "app_digest")
        try:
            needed = {name: told[name] for name in names}
            all_of_it = {
                "coordinator": told.get("coordinator", ""),
                "api_url": told.get("api_url", ""),
                **needed,
            }
        except (KeyError, TypeError, AttributeError) as error:
            raise JoinError(f"it does not say {error}") from None
        if not all(isinstance(value, str) for value in all_of_it.values()):
            raise JoinError("a value in it is no text")
        return cls(**all_of_it)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the authority's certificate, `AB:CD:...`.

        Raises:
            JoinError: it is no certificate.
        """
        return fingerprint(self.ca_certificate.encode())


@dataclass(frozen=True, kw_only=True)
class Standing:
    """How the site's card stands at the coordinator: `pending`, `enrolled` or `denied`, with the reason."""

    state: str
    reason: str


def fingerprint(certificate_pem: bytes) -> str:
    """SHA-256 of a PEM certificate as people compare it.

    Raises:
        JoinError: not a certificate.
    """
    try:
        found = x509.load_pem_x509_certificate(certificate_pem)
    except ValueError:
        raise JoinError("what should be the authority's certificate is none") from None
    return found.fingerprint(hashes.SHA256()).hex(":").upper()


def ask_federation(invitation: Invitation) -> Federation:
    """Ask the coordinator what its federation is, and hold that against the invitation. Sends nothing of the site.

    Raises:
        JoinError: nobody answers, or it is not the coordinator that the operator invited to.
    """
    told = Federation.from_dict(call(invitation.api_url, None, "GET", "/v1/federation"))
    _compare(told, invitation)
    if invitation.api_url.startswith("https:"):  # now that the authority is known, asked again under it
        told = Federation.from_dict(call(invitation.api_url, told.ca_certificate, "GET", "/v1/federation"))
        _compare(told, invitation)
    return told


def send_card(invitation: Invitation, card: Mapping[str, Any], *, ca_certificate: str) -> Standing:
    """Answer the invitation with the site's card; again asks how it stands.

    Raises:
        JoinError: nobody answers, or the coordinator refuses, in its words.
    """
    body = {"invitation": invitation.identifier, "secret": invitation.secret, "card": dict(card)}
    told = call(invitation.api_url, ca_certificate, "POST", "/v1/enrolments", body)
    return Standing(state=str(told.get("state")), reason=str(told.get("reason", "")))


def open_client(url: str, ca_certificate: str | None) -> httpx.Client:
    """An HTTP client for the coordinator: its authority alone is believed, or none where it is not known yet.

    Proxy variables (HTTPS_PROXY, NO_PROXY) count, except towards this machine.
    """
    import httpx

    if ca_certificate is None:
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE  # what is read is held against the fingerprint; nothing is sent
    else:
        # Not create_default_context: it may add the system's authorities.
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(cadata=ca_certificate)
    return httpx.Client(
        base_url=url,
        verify=context,
        timeout=TIMEOUT_SECONDS,
        trust_env=not is_this_machine(urlsplit(url).hostname),
    )


def _check_url(url: str) -> None:
    parts = urlsplit(url)
    if parts.scheme != "https" and not is_this_machine(parts.hostname):
        raise JoinError(
            f"the coordinator's address is {url}, which is not encrypted and not on this machine; ask the operator "
            "for one that begins with https:// (`fedtwin server invite --url`)"
        )


def _compare(told: Federation, invitation: Invitation) -> None:
    if told.fingerprint != invitation.ca_fingerprint:
        raise JoinError(
            f"the coordinator at {invitation.api_url} has a certificate with the fingerprint {told.fingerprint}, the "
            f"invitation says {invitation.ca_fingerprint}: somebody is in between, or the invitation is not from "
            "this coordinator; nothing was sent, call the operator"
        )
    if ledger_key_digest(told.ledger_key) != invitation.ledger_key_digest:
        raise JoinError(
            f"the coordinator at {invitation.api_url} shows another ledger key than the invitation names; nothing "
            "was sent, call the operator"
        )


def call(url: str, ca_certificate: str | None, method: str, path: str, body: Any = None) -> Mapping[str, Any]:
    """Ask the coordinator's API.

    Args:
        url: encrypted, or this machine's own.
        ca_certificate: see `open_client`.

    Raises:
        JoinError: nobody answers as a coordinator does, or it refuses, in its words.
    """
    _check_url(url)
    import httpx

    try:
        with (
            open_client(url, ca_certificate) as client,
            client.stream(method, path, json=body) as response,
        ):
            data = b""
            for block in response.iter_bytes():
                data += block
                if len(data) > MAX_ANSWER_BYTES:
                    raise JoinError(f"what answers at {url} is no fedtwin coordinator: it does not stop")
            answer = httpx.Response(response.status_code, content=data)
    except (httpx.HTTPError, ssl.SSLError) as error:
        raise JoinError(
            f"nobody answers as expected at {url} ({error}); is the coordinator up, and does your firewall let "
            "this machine out (HTTPS_PROXY counts)?"
        ) from None
    try:
        told = answer.json()
    except ValueError:
        told = None
    if not isinstance(told, dict):
        raise JoinError(f"what answers at {url} is no fedtwin coordinator (status {answer.status_code})")
    if answer.is_error:
        raise JoinError(str(told.get("detail") or told.get("title") or f"status {answer.status_code}"))
    return told
