"""The coordinator's home folder: its settings, read and checked once, and where everything in it lies."""

from __future__ import annotations

import datetime as dt
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from privacy.cli.folders import HomeError, free_port, new_folder, read_settings, toml_text, write_private
from privacy.signing import SigningKey, VerifyKey
from server.allowances import Allowances
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
# The file that holds the database's password, where the URL names a user only.
database_password_file = {database_password_file}

[api]
# Loopback, for the commands on this machine; others come through the gateway.
host = {api_host}
port = {api_port}

[gateway]
# The one public port: HTTPS, the API, and of the SuperLink /v1/fleet/ only. 0.0.0.0 listens to other machines.
host = {gateway_host}
port = {gateway_port}
# Of one client address, for long; four seconds' worth may come at once. Sites behind one address share it.
requests_per_second = 200
# The most that one request may carry; the API has its own, lower limits.
body_bytes = 268435456
# Reverse proxies whose X-Forwarded-For is believed, addresses or networks; ["*"] where nobody else gets here.
trusted_proxies = {trusted_proxies}

[cohorts]
# A cohort's files are removed after so many days; its certificate and its ledger entry stay.
keep_days = 30
# Synthetic patients that one owner may ask for on one day (UTC), unless the key says otherwise.
rows_per_day = 50000000
# Of one key; a minute's worth may come at once.
requests_per_minute = 6000
# A preview that takes longer is given up.
preview_seconds = 10.0

[superlink]
# Loopback only: Flower's SuperLink knows no users. Sites reach it through the gateway.
port = {superlink_port}
# What sites dial, host:port: the gateway, or what stands in front of it. The host must be in certs/server.crt.
address = {superlink_address}
"""


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class _Api(_Section):
    host: str = Field(min_length=1)
    port: int = Field(ge=1, le=65535)


class GatewaySettings(_Section):
    """The public port.

    Attributes:
        host, port: where it listens.
        requests_per_second: of one client address, for long.
        body_bytes: the most that one request may carry.
        trusted_proxies: whose X-Forwarded-For is believed.
    """

    host: str = Field(default="127.0.0.1", min_length=1)
    port: int = Field(default=8443, ge=1, le=65535)
    requests_per_second: float = Field(default=200.0, gt=0, allow_inf_nan=False)
    body_bytes: int = Field(default=256 * 2**20, ge=2**20)
    trusted_proxies: tuple[str, ...] = ()


class _SuperLink(_Section):
    port: int = Field(ge=1, le=65535)
    address: str = Field(pattern=r"^.+:\d{1,5}$")


class _Cohorts(_Section):
    keep_days: float = Field(default=30.0, gt=0, le=36_500)
    rows_per_day: int = Field(default=50_000_000, ge=0, le=10**15)
    requests_per_minute: int = Field(default=6_000, ge=1, le=10**9)
    preview_seconds: float = Field(default=10.0, gt=0, le=600)

    @property
    def allowances(self) -> Allowances:
        return Allowances(
            keep_cohorts=dt.timedelta(days=self.keep_days),
            rows_per_day=self.rows_per_day,
            requests_per_minute=self.requests_per_minute,
            preview_seconds=self.preview_seconds,
        )


class _Settings(_Section):
    name: str = Field(pattern=NAME_PATTERN)
    database: str = Field(min_length=1)
    database_password_file: str = ""
    api: _Api
    gateway: GatewaySettings = GatewaySettings()
    cohorts: _Cohorts = _Cohorts()
    superlink: _SuperLink


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
                _TEMPLATE.format(
                    name=toml_text(name),
                    database=toml_text(database),
                    database_password_file=toml_text(
                        str(database_password_file.resolve() if database_password_file else "")
                    ),
                    api_host=toml_text(api_host),
                    api_port=api_port or free_port(),
                    gateway_host=toml_text(gateway_host),
                    gateway_port=gateway_port,
                    trusted_proxies=f"[{', '.join(map(toml_text, trusted_proxies))}]",
                    superlink_port=superlink_port or free_port(),
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
        data = read_settings(file, create_with=f"fedtwin server init --home {path.name}")
        try:
            settings = _Settings.model_validate(data)
        except ValidationError as error:
            lines = [f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors()]
            raise HomeError(f"{file.name} cannot be used: {'; '.join(lines)}") from error
        return cls(
            path=path,
            name=settings.name,
            database_url=_resolved(settings.database, path, password_file=settings.database_password_file),
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


def _resolved(database: str, home: Path, *, password_file: str) -> str:
    """A relative SQLite file lies in the home, wherever a process was started; a password comes from its file.

    Raises:
        HomeError: the password file cannot be read, or the URL names no user.
    """
    prefix = "sqlite:///"
    if database.startswith(prefix) and not database.startswith(f"{prefix}/"):
        return f"{prefix}{home / database.removeprefix(prefix)}"
    if not password_file:
        return database
    scheme, separator, rest = database.partition("://")
    user, at, place = rest.partition("@")
    if not (separator and at and user) or ":" in user:
        raise HomeError(
            "database must be a URL with a user and no password where database_password_file is set"
        )
    try:
        password = (home / password_file).read_text().strip()
    except OSError as error:
        raise HomeError(f"database_password_file cannot be read: {error}") from error
    return f"{scheme}://{user}:{quote(password, safe='')}@{place}"
