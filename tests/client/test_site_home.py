"""A site's folder: laid out once, its keys made there and private, and read with every fault named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_private_key, load_ssh_public_key

from client.home import SiteHome
from privacy.cli.folders import HomeError
from privacy.signing import SigningKey

COORDINATOR = SigningKey.generate(name="lab").public


def create(path: Path, **changes: Any) -> SiteHome:
    settings: dict[str, Any] = {
        "name": "saint-mary",
        "superlink_address": "federation.example.org:443",
        "ca_certificate": b"-----BEGIN CERTIFICATE-----\n",
        "coordinator_key": COORDINATOR.text,
        "data_path": "patients.csv",
    }
    return SiteHome.create(path, **{**settings, **changes})


def test_a_home_reads_back_as_it_was_created(tmp_path: Path) -> None:
    home = create(tmp_path / "site", data_path='od"d\\name.csv', patient_id="patient")
    assert SiteHome.open(home.path) == home
    assert home.coordinator_key == COORDINATOR
    assert home.data.path == home.path / 'od"d\\name.csv'
    assert home.data.patient_id == "patient"
    assert create(tmp_path / "two", data_path="/data/x.csv").data.path == Path("/data/x.csv")
    assert create(tmp_path / "three").data.patient_id is None


def test_keys_are_made_here_private_and_of_the_kinds_that_are_needed(tmp_path: Path) -> None:
    home = create(tmp_path / "site")
    private = [home.receipt_key_file, home.node_key, home.worker_secret, home.fingerprint_secret]
    assert all(file.stat().st_mode & 0o777 == 0o600 for file in private)
    assert home.path.stat().st_mode & 0o077 == 0
    assert home.receipt_key().public.name == "saint-mary"
    node = load_ssh_private_key(home.node_key.read_bytes(), None)
    public = load_ssh_public_key(home.node_public_key.encode())
    assert isinstance(node, ec.EllipticCurvePrivateKey)
    assert isinstance(node.curve, ec.SECP384R1)
    assert node.public_key() == public
    other = create(tmp_path / "other")
    assert other.node_public_key != home.node_public_key
    assert other.receipt_key().public != home.receipt_key().public


def test_an_existing_folder_is_refused_and_keeps_its_keys(tmp_path: Path) -> None:
    home = create(tmp_path / "site")
    before = home.node_key.read_bytes()
    with pytest.raises(HomeError, match="already exists and is not empty"):
        create(home.path)
    assert home.node_key.read_bytes() == before


@pytest.mark.parametrize(
    ("field", "value", "named"),
    [
        ("name", "Saint Mary", "name"),
        ("superlink_address", "federation.example.org", "coordinator.address"),
        ("coordinator_key", "lab+00000000+AAAA", "coordinator.key"),
        ("data_kind", "xlsx", "data.kind"),
        ("data_path", "", "data.path"),
        ("supernode_port", 70_000, "supernode.port"),
    ],
)
def test_a_value_that_cannot_be_used_is_named_and_leaves_nothing_behind(
    tmp_path: Path, field: str, value: object, named: str
) -> None:
    with pytest.raises(HomeError, match=named):
        create(tmp_path / "site", **{field: value})
    assert list(tmp_path.iterdir()) == []


def test_a_study_may_have_a_source_of_its_own_and_faults_name_its_setting(tmp_path: Path) -> None:
    site = create(tmp_path / "site")
    file = site.path / "site.toml"
    file.write_text(file.read_text() + '\n[studies.scans.data]\nkind = "npz"\npath = "scans.npz"\n')
    opened = SiteHome.open(site.path)
    assert opened.data_for("scans").path == site.path / "scans.npz"
    assert opened.data_for("another") == opened.data
    file.write_text(file.read_text().replace('path = "scans.npz"', 'paht = "scans.npz"'))
    with pytest.raises(HomeError, match=r"studies\.scans\.data\.paht"):
        SiteHome.open(site.path)
