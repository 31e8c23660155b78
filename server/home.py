"""The coordinator's home folder: laid out once, opened by every process, and where everything in it lies."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from privacy.cli.folders import free_port, new_folder, write_private
from privacy.signing import SigningKey, VerifyKey
from server.allowances import Allowances
from server.bundle import build_app_bundle, digest_of_bundle
from server.certificates import fingerprint, make_certificates
from server.home_settings import (
    SETTINGS_FILE,
    GatewaySettings,
    database_url,
    read_home_settings,
    settings_text,
)


@dataclass(frozen=True, kw_only=True)
class CoordinatorHome:
    """A coordinator's folder and settings. Get one from `create` or `open`.

    Attributes:
        path: the folder, absolute.
        name: the coordinator's name; part of its key's text.
        database_url: SQLAlchemy URL. Sensitive: it may hold a password; do not log.
        api_host, api_port: where the API listens.
        gateway: the public port, which sites and people on other machines use.
        allowances: what users may have.
        superlink_port: the SuperLink's port on the loopback interface.
        superlink_address: host:port that sites dial.
    """

    path: Path
    name: str
    database_url: str = field(repr=False)
    api_host: str
    api_port: int
    gateway: GatewaySettings
    allowances: Allowances
    superlink_port: int
    superlink_address: str

    @classmethod
    def create(
        cls,
        path: Path,
        *,
        name: str = "coordinator",
        database: str = "sqlite:///fedtwin.db",
        database_password_file: Path | None = None,
        api_host: str = "127.0.0.1",
        api_port: int | None = None,
        gateway_host: str = "127.0.0.1",
        gateway_port: int | None = None,
        trusted_proxies: Sequence[str] = (),
        superlink_port: int | None = None,
        superlink_address: str | None = None,
        hosts: Sequence[str] = (),
    ) -> CoordinatorHome:
        """Lay out a new home: settings, keys, certificates, app bundle.

        Args:
            path: a folder that does not exist yet, or is empty.
            name: lower-case letters, digits, dots and hyphens.
            database: SQLAlchemy URL; `sqlite:///FILE` with a relative FILE lies in the home.
            database_password_file: holds the password, where the URL names a user only.
            api_host, api_port, superlink_port: a free port is picked where none is given.
            gateway_host, gateway_port: where the public port listens; this machine and a free port by default.
            trusted_proxies: whose X-Forwarded-For the gateway believes.
            superlink_address: what sites dial; the gateway by default.
            hosts: further names for the server certificate.

        Raises:
            HomeError: the folder is in use, or a value cannot be used; nothing was left behind.
        """
        gateway_port = gateway_port or free_port()
        superlink_address = superlink_address or f"127.0.0.1:{gateway_port}"
        dialled = superlink_address.rpartition(":")[0].strip("[]")
        with new_folder(path) as draft:
            (draft / SETTINGS_FILE).write_text(
                settings_text(
                    name=name,
                    database=database,
                    database_password_file=database_password_file,
                    api=(api_host, api_port or free_port()),
                    gateway=(gateway_host, gateway_port),
                    trusted_proxies=trusted_proxies,
                    superlink_port=superlink_port or free_port(),
                    superlink_address=superlink_address,
                )
            )
            home = cls.open(draft)
            for folder in ("certs", "keys", "releases", "cohorts", "logs", "flower"):
                (draft / folder).mkdir(mode=0o700)
            hosts = tuple(dict.fromkeys([dialled, "127.0.0.1", "localhost", *hosts]))
            certificates = make_certificates(name, hosts)
            home.ca_certificate.write_bytes(certificates.ca_certificate)
            home.server_certificate.write_bytes(certificates.server_certificate)
            write_private(home.server_key, certificates.server_key)
            write_private(draft / "keys" / "ca.key", certificates.ca_key)
            write_private(home.signing_key_file, SigningKey.generate(name=name).to_pem())
            write_private(home.superexec_secret, secrets.token_bytes(32))
            home.app_bundle.write_bytes(build_app_bundle())
        return cls.open(path)

    @classmethod
    def open(cls, path: Path) -> CoordinatorHome:
        """Read a home's settings.

        Raises:
            HomeError: no home there, or a setting that cannot be used.
        """
        path = path.resolve()
        settings = read_home_settings(path)
        return cls(
            path=path,
            name=settings.name,
            database_url=database_url(settings, path),
            api_host=settings.api.host,
            api_port=settings.api.port,
            gateway=settings.gateway,
            allowances=settings.cohorts.allowances,
            superlink_port=settings.superlink.port,
            superlink_address=settings.superlink.address,
        )

    @property
    def api_url(self) -> str:
        """The API's address on this machine."""
        return f"http://{self.api_host}:{self.api_port}"

    @property
    def public_url(self) -> str:
        """The API's address for everybody else: the gateway, or what stands in front of it."""
        return f"https://{self.superlink_address}"

    @property
    def ca_certificate(self) -> Path:
        """The authority that sites pin."""
        return self.path / "certs" / "ca.crt"

    @property
    def server_certificate(self) -> Path:
        """What the gateway and the SuperLink serve."""
        return self.path / "certs" / "server.crt"

    @property
    def server_key(self) -> Path:
        """The server certificate's key."""
        return self.path / "keys" / "server.key"

    @property
    def signing_key_file(self) -> Path:
        """The Ed25519 key that signs the ledger's checkpoints."""
        return self.path / "keys" / "coordinator.pem"

    @property
    def superexec_secret(self) -> Path:
        """What our own worker shows to the SuperLink to be given runs."""
        return self.path / "keys" / "superexec.secret"

    @property
    def app_bundle(self) -> Path:
        """The app that every run carries; it names code, and holds none."""
        return self.path / "fedtwin.fab"

    @property
    def superlink_database(self) -> Path:
        """The SuperLink's own state."""
        return self.path / "superlink.db"

    @property
    def releases(self) -> Path:
        """Generator files, named by digest."""
        return self.path / "releases"

    @property
    def cohorts(self) -> Path:
        """Results of cohort jobs."""
        return self.path / "cohorts"

    @property
    def logs(self) -> Path:
        """One log file per process."""
        return self.path / "logs"

    @property
    def app_digest(self) -> str:
        """SHA-256 of the app bundle, hexadecimal: what sites' policies allow."""
        return digest_of_bundle(self.app_bundle.read_bytes())

    @property
    def ca_fingerprint(self) -> str:
        """SHA-256 of the authority's certificate, for people to compare."""
        return fingerprint(self.ca_certificate.read_bytes())

    def signing_key(self) -> SigningKey:
        """Read the key that signs checkpoints."""
        return SigningKey.from_pem(self.signing_key_file.read_bytes(), name=self.name)

    @property
    def verify_key(self) -> VerifyKey:
        """The public half, in the form that sites and auditors pin (`.text`)."""
        return self.signing_key().public
