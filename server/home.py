"""The coordinator's home folder: its settings, read and checked once, and where everything in it lies."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from privacy.cli.folders import HomeError, free_port, new_folder, read_settings, toml_text, write_private
from privacy.signing import SigningKey, VerifyKey
from server.bundle import build_app_bundle, digest_of_bundle
from server.certificates import fingerprint, make_certificates

SETTINGS_FILE = "server.toml"
NAME_PATTERN = r"^[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?$"

_TEMPLATE = """\
# The coordinator's settings. Keys, certificates and data lie beside this file; nothing here is secret.
name = {name}
# Where studies, runs, releases and the ledger are kept: SQLite in this folder, or a URL such as
# postgresql+pg8000://user@host/fedtwin
database = {database}

[api]
host = {api_host}
port = {api_port}

[superlink]
# Loopback only: Flower's SuperLink knows no users. Sites reach it through a proxy that forwards /v1/fleet/.
port = {superlink_port}
# What sites dial, host:port; the host must be a name in certs/server.crt.
address = {superlink_address}
"""


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class _Api(_Section):
    host: str = Field(min_length=1)
    port: int = Field(ge=1, le=65535)


class _SuperLink(_Section):
    port: int = Field(ge=1, le=65535)
    address: str = Field(pattern=r"^.+:\d{1,5}$")


class _Settings(_Section):
    name: str = Field(pattern=NAME_PATTERN)
    database: str = Field(min_length=1)
    api: _Api
    superlink: _SuperLink


@dataclass(frozen=True, kw_only=True)
class CoordinatorHome:
    """A coordinator's folder and settings. Get one from `create` or `open`.

    Attributes:
        path: the folder, absolute.
        name: the coordinator's name; part of its key's text.
        database_url: SQLAlchemy URL.
        api_host, api_port: where the API listens.
        superlink_port: the SuperLink's port on the loopback interface.
        superlink_address: host:port that sites dial.
    """

    path: Path
    name: str
    database_url: str
    api_host: str
    api_port: int
    superlink_port: int
    superlink_address: str

    @classmethod
    def create(
        cls,
        path: Path,
        *,
        name: str = "coordinator",
        database: str = "sqlite:///fedtwin.db",
        api_host: str = "127.0.0.1",
        api_port: int | None = None,
        superlink_port: int | None = None,
        superlink_address: str | None = None,
        hosts: Sequence[str] = (),
    ) -> CoordinatorHome:
        """Lay out a new home: settings, keys, certificates, app bundle.

        Args:
            path: a folder that does not exist yet, or is empty.
            name: lower-case letters, digits, dots and hyphens.
            database: SQLAlchemy URL; `sqlite:///FILE` with a relative FILE lies in the home.
            api_host, api_port, superlink_port: a free port is picked where none is given.
            superlink_address: what sites dial; the SuperLink's own port by default.
            hosts: further names for the server certificate.

        Raises:
            HomeError: the folder is in use, or a value cannot be used; nothing was left behind.
        """
        superlink_port = superlink_port or free_port()
        superlink_address = superlink_address or f"127.0.0.1:{superlink_port}"
        dialled = superlink_address.rpartition(":")[0].strip("[]")
        with new_folder(path) as draft:
            (draft / SETTINGS_FILE).write_text(
                _TEMPLATE.format(
                    name=toml_text(name),
                    database=toml_text(database),
                    api_host=toml_text(api_host),
                    api_port=api_port or free_port(),
                    superlink_port=superlink_port,
                    superlink_address=toml_text(superlink_address),
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
        file = path / SETTINGS_FILE
        data = read_settings(file, create_with=f"fedtwin server create --home {path.name}")
        try:
            settings = _Settings.model_validate(data)
        except ValidationError as error:
            lines = [f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors()]
            raise HomeError(f"{file.name} cannot be used: {'; '.join(lines)}") from error
        return cls(
            path=path,
            name=settings.name,
            database_url=_resolved(settings.database, path),
            api_host=settings.api.host,
            api_port=settings.api.port,
            superlink_port=settings.superlink.port,
            superlink_address=settings.superlink.address,
        )

    @property
    def api_url(self) -> str:
        """The API's address on this machine."""
        return f"http://{self.api_host}:{self.api_port}"

    @property
    def ca_certificate(self) -> Path:
        """The authority that sites pin."""
        return self.path / "certs" / "ca.crt"

    @property
    def server_certificate(self) -> Path:
        """What the SuperLink serves."""
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


def _resolved(database: str, home: Path) -> str:
    """A relative SQLite file lies in the home, wherever a process was started."""
    prefix = "sqlite:///"
    if database.startswith(prefix) and not database.startswith(f"{prefix}/"):
        return f"{prefix}{home / database.removeprefix(prefix)}"
    return database
