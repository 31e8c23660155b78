"""A site's home folder: its settings, read and checked once, and where everything in it lies."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from client.connectors.settings import DataSettings, DataSource
from client.keys import create_keys
from privacy.cli.folders import HomeError, free_port, new_folder, read_settings, toml_text, write_private
from privacy.signing import SignatureError, SigningKey, VerifyKey

SETTINGS_FILE = "site.toml"
PASSWORD_FILE = "keys/data.password"  # noqa: S105
NAME_PATTERN = r"^[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?$"

_TEMPLATE = """\
# The site's settings. What the site allows is in policy.toml; keys and the record lie beside this file.
name = {name}

[coordinator]
# host:port of the federation's SuperLink; its authority is pinned in coordinator-ca.crt.
address = {address}
# Where the coordinator's API is; `fedtwin site check` asks it for the time.
url = {url}
# The key that signs the coordinator's ledger, pinned when the site joined.
key = {key}

[data]
# csv, parquet, sql, omop, fhir, image-folder, npz or dicom; docs/site-data.md shows each kind's settings.
# Paths are relative to this folder, or absolute. patient_id is the column that says whose record a line is;
# where a table has none, every line is another patient.
{data}

# A study whose patients are elsewhere, such as in a folder of images, has a section of its own:
# [studies.NAME.data]

[supernode]
# Loopback only: between the SuperNode and this site's own worker.
port = {port}
"""


class _Section(BaseModel):
    # Errors never repeat the input: a URL may hold a password that was put there by mistake.
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


class _Coordinator(_Section):
    address: str = Field(pattern=r"^.+:\d{1,5}$")
    key: str = Field(min_length=1)
    url: str = Field(default="", pattern=r"^(https?://[^/?#\s@]+)?$")


class _SuperNode(_Section):
    port: int = Field(ge=1, le=65535)


class _StudySection(_Section):
    data: DataSettings


class _Settings(_Section):
    name: str = Field(pattern=NAME_PATTERN)
    coordinator: _Coordinator
    data: DataSettings
    studies: dict[str, _StudySection] = Field(default_factory=dict)
    supernode: _SuperNode


@dataclass(frozen=True, kw_only=True)
class SiteHome:
    """A site's folder and settings. Get one from `create` or `open`.

    Attributes:
        path: the folder, absolute.
        name: the site's name in the federation.
        superlink_address: host:port of the coordinator's SuperLink.
        coordinator_url: the coordinator's API; empty where nobody said.
        coordinator_key: the pinned key of the coordinator's ledger.
        data: where the site's patients are; a value of its kind.
        study_data: the same for studies that have a source of their own, by study.
        supernode_port: where the SuperNode serves this site's worker, on the loopback interface.
    """

    path: Path
    name: str
    superlink_address: str
    coordinator_url: str
    coordinator_key: VerifyKey
    data: DataSource
    supernode_port: int
    study_data: Mapping[str, DataSource] = field(default_factory=dict)

    @classmethod
    def create(
        cls,
        path: Path,
        *,
        name: str,
        superlink_address: str,
        ca_certificate: bytes,
        coordinator_key: str,
        data_path: Path | str,
        data_kind: str = "csv",
        patient_id: str | None = None,
        data_settings: Mapping[str, str | float] | None = None,
        data_password: str = "",
        supernode_port: int | None = None,
        coordinator_url: str = "",
        invitation: str = "",
    ) -> SiteHome:
        """Lay out a new home: settings, pinned certificate and key, own keys. `policy.toml` is not made here.

        Args:
            path: a folder that does not exist yet, or is empty.
            name: lower-case letters, digits, dots and hyphens.
            superlink_address: host:port that the site dials.
            ca_certificate: PEM of the coordinator's authority; compare its fingerprint before.
            coordinator_key: the coordinator's key text (`name+hash+base64`).
            data_path: the site's file or folder, relative to the home or absolute; a database's URL.
            data_kind, patient_id, data_settings: the `[data]` section, as `client.connectors.settings` has it.
            data_password: a database's, kept among the keys; it stands in no other file.
            supernode_port: a free port is picked where none is given.
            coordinator_url: the coordinator's API.
            invitation: the text that the site joins by; kept among the keys, to ask again how its card stands.

        Raises:
            HomeError: the folder is in use, or a value cannot be used; nothing was left behind.
        """
        place = "url" if data_kind in ("sql", "omop") else "path"
        data = {"kind": data_kind, place: str(data_path), **(data_settings or {})}
        if patient_id is not None:
            data["patient_id"] = patient_id
        if data_password:
            data["password_file"] = PASSWORD_FILE
        with new_folder(path) as draft:
            (draft / SETTINGS_FILE).write_text(
                _TEMPLATE.format(
                    name=toml_text(name),
                    address=toml_text(superlink_address),
                    key=toml_text(coordinator_key),
                    url=toml_text(coordinator_url),
                    data="\n".join(f"{name} = {_toml(value)}" for name, value in data.items()),
                    port=supernode_port or free_port(),
                )
            )
            home = cls.open(draft)
            for folder in ("keys", "state", "logs", "flower"):
                (draft / folder).mkdir(mode=0o700)
            home.ca_certificate.write_bytes(ca_certificate)
            create_keys(home.receipt_key_file, home.node_key, site=name)
            write_private(home.worker_secret, secrets.token_bytes(32))
            write_private(home.fingerprint_secret, secrets.token_bytes(32))
            if data_password:
                write_private(draft / PASSWORD_FILE, data_password.encode())
            if invitation:
                write_private(home.invitation_file, invitation.encode())
        return cls.open(path)

    @classmethod
    def open(cls, path: Path) -> SiteHome:
        """Read a home's settings.

        Raises:
            HomeError: no home there, or a setting that cannot be used.
        """
        path = path.resolve()
        file = path / SETTINGS_FILE
        data = read_settings(file, create_with=f"fedtwin site join --home {path.name}")
        try:
            settings = _Settings.model_validate(data)
            key = VerifyKey.from_text(settings.coordinator.key)
        except ValidationError as error:
            lines = [f"{_setting(one['loc'], one['type'])}: {one['msg']}" for one in error.errors()]
            raise HomeError(f"{file.name} cannot be used: {'; '.join(lines)}") from error
        except SignatureError as error:
            raise HomeError(f"{file.name} cannot be used: coordinator.key: {error}") from error
        return cls(
            path=path,
            name=settings.name,
            superlink_address=settings.coordinator.address,
            coordinator_url=settings.coordinator.url.rstrip("/"),
            coordinator_key=key,
            data=settings.data.within(path),
            study_data={name: section.data.within(path) for name, section in settings.studies.items()},
            supernode_port=settings.supernode.port,
        )

    def data_for(self, study: str) -> DataSource:
        """Where the patients of a study are: its own section of site.toml, else `[data]`.

        Privacy: whatever the source, the site has one record: a patient's budget is the sum over all of them.
        """
        return self.study_data.get(study, self.data)

    @property
    def policy_file(self) -> Path:
        """What the site allows; the site's people own it."""
        return self.path / "policy.toml"

    @property
    def record_file(self) -> Path:
        """The guard's durable record."""
        return self.path / "record.db"

    @property
    def state(self) -> Path:
        """Local discriminators and replies; never leaves the site."""
        return self.path / "state"

    @property
    def logs(self) -> Path:
        """One log file per process; no data in them."""
        return self.path / "logs"

    @property
    def ca_certificate(self) -> Path:
        """The pinned authority of the coordinator."""
        return self.path / "coordinator-ca.crt"

    @property
    def receipt_key_file(self) -> Path:
        """Ed25519 key that signs this site's receipts."""
        return self.path / "keys" / "site.pem"

    @property
    def node_key(self) -> Path:
        """ECDSA key with which the SuperNode logs in; its public half is beside it."""
        return self.path / "keys" / "node"

    @property
    def worker_secret(self) -> Path:
        """What the worker shows to the SuperNode to be given tasks."""
        return self.path / "keys" / "worker.secret"

    @property
    def fingerprint_secret(self) -> Path:
        """What keys the data file's fingerprint in receipts, so that nobody can guess the file from it."""
        return self.path / "keys" / "fingerprint.secret"

    @property
    def invitation_file(self) -> Path:
        """The invitation that the site answered; absent where it was enrolled offline."""
        return self.path / "keys" / "invitation"

    @property
    def notices(self) -> Path:
        """What the site's own staff is told: faults of the table with row and column. Sensitive: never sent."""
        return self.path / "notices.log"

    @property
    def node_public_key(self) -> str:
        """What the coordinator registers for this site, in OpenSSH's format."""
        return self.node_key.with_suffix(".pub").read_text().strip()

    def receipt_key(self) -> SigningKey:
        """Read the key that signs receipts."""
        return SigningKey.from_pem(self.receipt_key_file.read_bytes(), name=self.name)


def _toml(value: str | float) -> str:
    return toml_text(value) if isinstance(value, str) else repr(value)


def _setting(place: tuple[int | str, ...], fault: str) -> str:
    """The setting at fault as it stands in the file: pydantic puts the kind's name behind `data`."""
    if fault.startswith("union_tag"):
        place = (*place, "kind")
    elif "data" in place:
        at = place.index("data") + 1
        place = (*place[:at], *place[at + 1 :])
    return ".".join(map(str, place))
