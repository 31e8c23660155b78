"""Ed25519 against RFC 8032, Wycheproof and CCTV; key texts and PEM; stock openssl agrees."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from privacy.signing import COSIGNATURE, SignatureError, SigningKey, VerifyKey

RFC_8032 = [  # section 7.1: secret, public, message, signature
    (
        "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
        "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
        "",
        "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46b"
        "d25bf5f0595bbe24655141438e7a100b",
    ),
    (
        "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb",
        "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
        "72",
        "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c"
        "387b2eaeb4302aeeb00d291612bb0c00",
    ),
    (
        "c5aa8df43f9f837bedb7442f31dcb7b166d38535076f094b85ce3a2e0b4458f7",
        "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025",
        "af82",
        "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac18ff9b538d16f290ae67f760984dc659"
        "4a7c15e9716ed28dc027beceea1ec40a",
    ),
]


def vectors(name: str) -> Any:
    root = os.environ.get("FEDTWIN_DATA")
    path = Path(root or ".") / "vectors" / name
    if root is None or not path.is_file():
        pytest.skip(f"FEDTWIN_DATA has no vectors/{name}: these vectors were NOT run")
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize(("secret", "public", "message", "signature"), RFC_8032)
def test_rfc_8032_vectors(secret: str, public: str, message: str, signature: str) -> None:
    key = SigningKey.from_seed(bytes.fromhex(secret), name="rfc8032")
    assert key.public.raw.hex() == public
    assert key.sign(bytes.fromhex(message)).hex() == signature
    key.public.verify(bytes.fromhex(signature), bytes.fromhex(message))
    with pytest.raises(SignatureError):
        key.public.verify(bytes.fromhex(signature), bytes.fromhex(message) + b"\x00")


def test_wycheproof_signatures_are_judged_as_published() -> None:
    data = vectors("wycheproof_ed25519_test.json")
    judged, wrong = 0, []
    for group in data["testGroups"]:
        key = VerifyKey(name="wycheproof", raw=bytes.fromhex(group["publicKey"]["pk"]))
        for test in group["tests"]:
            judged += 1
            holds = _holds(key, bytes.fromhex(test["sig"]), bytes.fromhex(test["msg"]))
            if holds != (test["result"] == "valid"):
                wrong.append(test["tcId"])
    assert judged == data["numberOfTests"] == 151
    assert wrong == []


def test_cctv_keys_that_accept_signatures_nobody_made_are_refused() -> None:
    """Every low-order or non-canonical key of the corpus is refused; what is left is decided by the signature."""
    data = vectors("cctv_ed25519vectors.json")
    assert len(data) == 914
    weak = {"low_order_A", "non_canonical_A"}
    accepted: list[set[str]] = []
    for test in data:
        flags = set(test["flags"] or [])
        try:
            key = VerifyKey(name="cctv", raw=bytes.fromhex(test["key"]))
        except SignatureError:
            assert flags & weak, "only weak keys are refused"
            continue
        assert not flags & weak, f"the weak key of vector {test['number']} was taken"
        if _holds(key, bytes.fromhex(test["sig"]), test["msg"].encode()):
            accepted.append(flags)
    # The same key and signature are accepted by openssl; a key's owner alone can make such signatures.
    assert all("low_order_residue" not in flags and "non_canonical_R" not in flags for flags in accepted)


def test_a_key_text_reads_back_and_only_in_its_one_form() -> None:
    key = SigningKey.generate(name="fedtwin.example/ledger").public
    assert VerifyKey.from_text(key.text) == key
    assert VerifyKey.from_text(key.text + "\n") == key
    name, hashed, encoded = key.text.split("+", 2)
    for wrong in (
        "",
        name,
        f"{name}+{hashed}",
        f"x{key.text}",
        f"{name}+00000000+{encoded}",
        f"{name}+{hashed.upper()}+{encoded}",
        f"{name}+{hashed}+{encoded[:-2]}",
        f"{name}+{hashed}+{encoded}A",
        f"{name}+{hashed}+{encoded[:-1]}!",
    ):
        if wrong != key.text:
            with pytest.raises(SignatureError):
                VerifyKey.from_text(wrong)


def test_a_published_c2sp_key_and_signature_hold() -> None:
    """The example key of Go's sumdb/note package, and a note text that it signed."""
    key = VerifyKey.from_text("PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW")
    assert key.name == "PeterNeumann"
    assert key.key_id().hex() == "c74f20a3"
    text = b"If you think cryptography is the answer to your problem,\nthen you don't know what your problem is.\n"
    line = "x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM="
    data = base64.b64decode(line)
    assert data[:4] == key.key_id()
    key.verify(data[4:], text)


@pytest.mark.parametrize(
    "name", ["", "two words", "plus+sign", "line\nbreak", "nul\x00", "x" * 129, "no\u00a0break"]
)
def test_names_that_would_break_a_note_are_refused(name: str) -> None:
    with pytest.raises(SignatureError, match="key name"):
        SigningKey.generate(name=name)


def test_cosignature_and_plain_key_ids_differ() -> None:
    key = SigningKey.generate(name="mercy").public
    assert key.key_id() != key.key_id(COSIGNATURE)


def test_pem_round_trips_and_foreign_pem_is_refused() -> None:
    key = SigningKey.generate(name="mercy")
    again = SigningKey.from_pem(key.to_pem(), name="mercy")
    assert again.public == key.public
    assert again.sign(b"x") == key.sign(b"x")
    assert VerifyKey.from_pem(key.public.to_pem(), name="mercy") == key.public
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    other = ec.generate_private_key(ec.SECP256R1())
    pem = other.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    public = other.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    for data in (pem, b"", b"-----BEGIN PRIVATE KEY-----\n", key.public.to_pem()):
        with pytest.raises(SignatureError):
            SigningKey.from_pem(data, name="mercy")
    for data in (public, b"", key.to_pem()):
        with pytest.raises(SignatureError):
            VerifyKey.from_pem(data, name="mercy")


def test_a_printed_key_does_not_show_its_secret() -> None:
    key = SigningKey.generate(name="mercy")
    secret = key.to_pem().splitlines()[1].decode()
    assert secret not in repr(key)
    assert repr(key) == f"SigningKey(of {key.public.text!r})"


def test_two_keys_are_never_the_same() -> None:
    keys = {SigningKey.generate(name="mercy").public for _ in range(100)}
    assert len(keys) == 100


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
def test_openssl_reads_our_keys_and_agrees_on_signatures(tmp_path: Path) -> None:
    key = SigningKey.generate(name="mercy")
    (tmp_path / "key.pem").write_bytes(key.to_pem())
    (tmp_path / "text").write_bytes(b"hello\n")
    run = ["openssl", "pkeyutl", "-sign", "-inkey", "key.pem", "-rawin", "-in", "text", "-out", "sig"]
    subprocess.run(run, cwd=tmp_path, check=True)
    assert (tmp_path / "sig").read_bytes() == key.sign(b"hello\n")


def _holds(key: VerifyKey, signature: bytes, message: bytes) -> bool:
    try:
        key.verify(signature, message)
    except SignatureError:
        return False
    return True
