"""What a site must know to join: addresses, authority, ledger key, app digest. Public, nothing in it is secret."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from server.home import CoordinatorHome


@dataclass(frozen=True, kw_only=True)
class FederationFacts:
    """The content of `federation.json` and of GET /v1/federation.

    Attributes:
        coordinator: its name.
        superlink_address: host:port that sites' nodes dial.
        api_url: where sites reach the API.
        ca_certificate: PEM of the authority that sites pin.
        ca_fingerprint: its SHA-256, for people to compare.
        ledger_key: text of the key that signs the ledger.
        app_digest: of the app bundle that sites' policies allow, hexadecimal.
    """

    coordinator: str
    superlink_address: str
    api_url: str
    ca_certificate: str
    ca_fingerprint: str
    ledger_key: str
    app_digest: str

    @classmethod
    def of(cls, home: CoordinatorHome, *, api_url: str | None = None) -> FederationFacts:
        """Those of a coordinator.

        Args:
            api_url: where sites reach the API, if that is not the home's public address.
        """
        return cls(
            coordinator=home.name,
            superlink_address=home.superlink_address,
            api_url=(api_url or home.public_url).rstrip("/"),
            ca_certificate=home.ca_certificate.read_text(),
            ca_fingerprint=home.ca_fingerprint,
            ledger_key=home.verify_key.text,
            app_digest=home.app_digest,
        )

    def to_dict(self) -> dict[str, str]:
        """As JSON data."""
        return asdict(self)
