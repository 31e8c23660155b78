"""A site's two keys, made at the site: one that signs receipts, one with which its SuperNode logs in.

Neither ever leaves the site. The coordinator is given the public halves when it enrols the site.
"""

from __future__ import annotations

from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from privacy.cli.folders import write_private
from privacy.signing import SigningKey


def create_keys(receipt_key: Path, node_key: Path, *, site: str) -> None:
    """Make both keys and write them with mode 0600; neither file may exist.

    Args:
        receipt_key: Ed25519, PKCS8 PEM: signs every receipt of this site.
        node_key: ECDSA on P-384 in OpenSSH's format, as Flower wants it; its public half goes beside it
            into `NAME.pub`.
        site: the site's name; receipts name it.
    """
    write_private(receipt_key, SigningKey.generate(name=site).to_pem())
    node = ec.generate_private_key(ec.SECP384R1())
    write_private(
        node_key,
        node.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
        ),
    )
    public = node.public_key().public_bytes(
        serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    )
    node_key.with_suffix(".pub").write_bytes(public + b" " + site.encode() + b"\n")
