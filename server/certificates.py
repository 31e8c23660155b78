"""The coordinator's own certificate authority and its server certificate, made where it runs.

Sites pin the authority's certificate (they are given it with their invitation and compare the fingerprint),
so no public authority is involved. The authority's key signs one certificate and stays in the home.
"""

from __future__ import annotations

import datetime
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

_AUTHORITY_DAYS = 3650
_SERVER_DAYS = 825
_CLOCK_SKEW = datetime.timedelta(hours=1)


@dataclass(frozen=True, kw_only=True)
class Certificates:
    """PEM files of one authority and the server certificate that it signed.

    Attributes:
        ca_certificate, ca_key: the authority; the key renews the server certificate and goes nowhere.
        server_certificate, server_key: what the SuperLink serves.
    """

    ca_certificate: bytes
    ca_key: bytes
    server_certificate: bytes
    server_key: bytes


def make_certificates(name: str, hosts: Sequence[str]) -> Certificates:
    """Make an authority and a server certificate for the host names and addresses that sites dial.

    Args:
        name: the coordinator's name, shown in the authority's subject.
        hosts: DNS names or IP addresses, each becomes a subject alternative name; at least one.
    """
    if not hosts:
        raise ValueError("hosts is empty; name at least one host that sites dial, such as 127.0.0.1")
    ca_key = ec.generate_private_key(ec.SECP384R1())
    authority = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"fedtwin {name} authority"[:64])])
    ca_certificate = (
        _builder(authority, authority, ca_key.public_key(), _AUTHORITY_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(ca_key.public_key()), critical=False)
        .sign(ca_key, hashes.SHA384())
    )
    server_key = ec.generate_private_key(ec.SECP256R1())
    server_certificate = (
        _builder(
            x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, hosts[0][:64])]),
            authority,
            server_key.public_key(),
            _SERVER_DAYS,
        )
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(
            x509.SubjectAlternativeName([_alternative_name(host) for host in hosts]), critical=False
        )
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False
        )
        .sign(ca_key, hashes.SHA384())
    )
    return Certificates(
        ca_certificate=ca_certificate.public_bytes(serialization.Encoding.PEM),
        ca_key=_private_pem(ca_key),
        server_certificate=server_certificate.public_bytes(serialization.Encoding.PEM),
        server_key=_private_pem(server_key),
    )


def fingerprint(certificate_pem: bytes) -> str:
    """SHA-256 of a PEM certificate as people compare it: `AB:CD:...`, 32 pairs."""
    return x509.load_pem_x509_certificate(certificate_pem).fingerprint(hashes.SHA256()).hex(":").upper()


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, days: int
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _CLOCK_SKEW)
        .not_valid_after(now + datetime.timedelta(days=days))
    )


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _alternative_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
