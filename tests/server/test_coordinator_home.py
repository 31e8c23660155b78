"""A coordinator's folder: laid out once, private, and read with every fault named."""

from __future__ import annotations

import hashlib
import ipaddress
import ssl
import zipfile
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.verification import PolicyBuilder, Store

from privacy.cli.folders import HomeError
from server.bundle import build_app_bundle, digest_of_bundle
from server.certificates import fingerprint, make_certificates
from server.home import CoordinatorHome


@pytest.fixture
def home(tmp_path: Path) -> CoordinatorHome:
    return CoordinatorHome.create(tmp_path / "lab", name="lab")


def test_a_home_reads_back_as_it_was_created_wherever_it_is_moved(home: CoordinatorHome) -> None:
    assert CoordinatorHome.open(home.path) == home
    assert home.database_url == f"sqlite:///{home.path}/fedtwin.db"
    moved = home.path.rename(home.path.with_name("elsewhere"))
    assert CoordinatorHome.open(moved).database_url == f"sqlite:///{moved}/fedtwin.db"


def test_a_database_url_is_kept_as_it_is(tmp_path: Path) -> None:
    url = "postgresql+pg8000://u@db/fedtwin"
    assert CoordinatorHome.create(tmp_path / "lab", database=url).database_url == url
    absolute = "sqlite:////var/lib/fedtwin.db"
    assert CoordinatorHome.create(tmp_path / "two", database=absolute).database_url == absolute


def test_a_databases_password_comes_from_its_file_and_is_never_shown(tmp_path: Path) -> None:
    url, file = "postgresql+pg8000://u@db/fedtwin", tmp_path / "password"
    with pytest.raises(HomeError, match="database_password_file cannot be read"):
        CoordinatorHome.create(tmp_path / "lab", database=url, database_password_file=file)
    file.write_text("a/b@c:d\n")
    home = CoordinatorHome.create(tmp_path / "lab", database=url, database_password_file=file)
    assert home.database_url == "postgresql+pg8000://u:a%2Fb%40c%3Ad@db/fedtwin"
    assert "a%2Fb" not in repr(home)
    assert "a/b" not in (home.path / "server.toml").read_text()
    for wrong in ("postgresql://db/fedtwin", "postgresql://u:p@db/fedtwin"):
        with pytest.raises(HomeError, match="a user and no password"):
            CoordinatorHome.create(tmp_path / "two", database=wrong, database_password_file=file)


def test_sites_dial_the_public_port_and_the_superlink_has_another(home: CoordinatorHome) -> None:
    assert home.superlink_address == f"127.0.0.1:{home.gateway.port}"
    assert home.public_url == f"https://127.0.0.1:{home.gateway.port}"
    assert len({home.gateway.port, home.superlink_port, home.api_port}) == 3


def test_no_secret_can_be_read_by_others(home: CoordinatorHome) -> None:
    assert home.path.stat().st_mode & 0o077 == 0
    keys = list((home.path / "keys").iterdir())
    assert {file.name for file in keys} == {"ca.key", "coordinator.pem", "server.key", "superexec.secret"}
    assert all(file.stat().st_mode & 0o777 == 0o600 for file in keys)
    settings = (home.path / "server.toml").read_text()
    assert "PRIVATE" not in settings
    assert home.superexec_secret.read_bytes().hex() not in settings


def test_an_existing_folder_is_refused_and_left_as_it_was(home: CoordinatorHome) -> None:
    before = {file: file.read_bytes() for file in home.path.rglob("*") if file.is_file()}
    with pytest.raises(HomeError, match="already exists and is not empty"):
        CoordinatorHome.create(home.path)
    assert {file: file.read_bytes() for file in home.path.rglob("*") if file.is_file()} == before


@pytest.mark.parametrize("name", ["", "Lab", "my lab", 'a"b', "-lab", "x" * 64])
def test_a_name_that_cannot_be_used_leaves_nothing_behind(tmp_path: Path, name: str) -> None:
    with pytest.raises(HomeError, match="name"):
        CoordinatorHome.create(tmp_path / "lab", name=name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("[api]", "[apy]", "api"),
        ("port = ", "port = 9", "port"),
        ('database = "', 'database = 3 # "', "database"),
        ("[superlink]", "[superlink]\nspeed = 3", "superlink.speed"),
    ],
)
def test_a_setting_that_cannot_be_used_is_named(
    home: CoordinatorHome, old: str, new: str, named: str
) -> None:
    file = home.path / "server.toml"
    file.write_text(file.read_text().replace(old, new))
    with pytest.raises(HomeError, match=named):
        CoordinatorHome.open(home.path)


def test_a_folder_without_settings_says_how_to_create_one(tmp_path: Path) -> None:
    with pytest.raises(HomeError, match="fedtwin server init --home"):
        CoordinatorHome.open(tmp_path)


def test_the_key_and_the_fingerprint_are_those_of_the_files(home: CoordinatorHome) -> None:
    assert home.verify_key.text.startswith("lab+")
    home.verify_key.verify(home.signing_key().sign(b"entry"), b"entry")
    der = ssl.PEM_cert_to_DER_cert(home.ca_certificate.read_text())
    assert home.ca_fingerprint.replace(":", "").lower() == hashlib.sha256(der).hexdigest()


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "federation.example.org"])
def test_a_server_certificate_holds_for_what_sites_dial_and_for_nothing_else(host: str) -> None:
    made = make_certificates("lab", [host])
    authority = x509.load_pem_x509_certificate(made.ca_certificate)
    server = x509.load_pem_x509_certificate(made.server_certificate)

    def check(name: str) -> None:
        try:
            subject: x509.GeneralName = x509.IPAddress(ipaddress.ip_address(name))
        except ValueError:
            subject = x509.DNSName(name)
        PolicyBuilder().store(Store([authority])).build_server_verifier(subject).verify(server, [])

    check(host)
    with pytest.raises(x509.verification.VerificationError):
        check("other.example.org")
    assert fingerprint(made.ca_certificate) != fingerprint(make_certificates("lab", [host]).ca_certificate)


def test_a_certificate_without_hosts_is_refused() -> None:
    with pytest.raises(ValueError, match="hosts is empty"):
        make_certificates("lab", [])


def test_the_app_bundle_names_code_holds_none_and_is_the_same_everywhere(home: CoordinatorHome) -> None:
    assert build_app_bundle() == build_app_bundle() == home.app_bundle.read_bytes()
    assert home.app_digest == digest_of_bundle(build_app_bundle())
    with zipfile.ZipFile(home.app_bundle) as archive:
        assert archive.namelist() == ["pyproject.toml", ".info/CONTENT"]
        assert b'clientapp = "client.app:app"' in archive.read("pyproject.toml")
