"""RFC 6962 trees against published vectors, and proofs as properties."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import tarfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from privacy.merkle import (
    EMPTY_ROOT,
    CompactRange,
    LedgerVerificationError,
    consistency_proof,
    inclusion_proof,
    leaf_hash,
    node_hash,
    root_from_leaves,
    verify_consistency,
    verify_inclusion,
)

# The leaves and heads that Certificate Transparency's implementations share.
CT_LEAVES = [
    "",
    "00",
    "10",
    "2021",
    "3031",
    "40414243",
    "5051525354555657",
    "606162636465666768696a6b6c6d6e6f",
]
CT_ROOTS = [
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]
LEAVES = [leaf_hash(bytes([n])) for n in range(130)]


def test_rfc_6962_heads_of_one_to_eight_leaves() -> None:
    leaves = [leaf_hash(bytes.fromhex(text)) for text in CT_LEAVES]
    assert root_from_leaves([]).hex() == hashlib.sha256(b"").hexdigest()
    for size, root in enumerate(CT_ROOTS, 1):
        assert root_from_leaves(leaves[:size]).hex() == root


def test_rfc_6962_example_paths_of_seven_leaves() -> None:
    """Section 2.1.3: the tree of seven, its named nodes, four audit paths and three consistency proofs."""
    a, b, c, d, e, f, j = LEAVES[:7]
    g, h, i = node_hash(a, b), node_hash(c, d), node_hash(e, f)
    k, end = node_hash(g, h), node_hash(i, j)
    assert root_from_leaves(LEAVES[:7]) == node_hash(k, end)
    assert inclusion_proof(LEAVES, 0, size=7) == [b, h, end]
    assert inclusion_proof(LEAVES, 3, size=7) == [c, g, end]
    assert inclusion_proof(LEAVES, 4, size=7) == [f, j, k]
    assert inclusion_proof(LEAVES, 6, size=7) == [i, k]
    assert consistency_proof(LEAVES, 3, 7) == [c, d, g, end]
    assert consistency_proof(LEAVES, 4, 7) == [end]
    assert consistency_proof(LEAVES, 6, 7) == [i, j, k]


def test_every_leaf_of_every_tree_up_to_130_is_proved() -> None:
    for size in (*range(1, 35), 63, 64, 65, 127, 128, 129, 130):
        root = root_from_leaves(LEAVES[:size])
        for index in range(size):
            proof = inclusion_proof(LEAVES, index, size=size)
            assert len(proof) <= (size - 1).bit_length()
            verify_inclusion(leaf=LEAVES[index], index=index, size=size, proof=proof, root=root)


def test_every_tree_up_to_34_is_proved_a_beginning_of_the_larger() -> None:
    roots = [root_from_leaves(LEAVES[:size]) for size in range(35)]
    for new in range(1, 35):
        for old in range(1, new + 1):
            proof = consistency_proof(LEAVES, old, new)
            verify_consistency(
                old_size=old, old_root=roots[old], new_size=new, new_root=roots[new], proof=proof
            )


@given(st.data())
def test_no_changed_inclusion_proof_verifies(data: st.DataObject) -> None:
    size = data.draw(st.integers(2, 130))
    index = data.draw(st.integers(0, size - 1))
    root = root_from_leaves(LEAVES[:size])
    proof = inclusion_proof(LEAVES, index, size=size)
    changed = {"leaf": LEAVES[index], "index": index, "size": size, "proof": proof, "root": root}
    what = data.draw(st.sampled_from(["leaf", "index", "proof", "root", "shorter", "longer", "swapped"]))
    if what in ("leaf", "root"):
        changed[what] = _flip(changed[what], data.draw(st.integers(0, 255)))  # type: ignore[arg-type]
    elif what == "index":
        changed["index"] = data.draw(st.integers(-1, size).filter(lambda other: other != index))
    elif what == "proof":
        at = data.draw(st.integers(0, len(proof) - 1))
        changed["proof"] = [*proof[:at], _flip(proof[at], data.draw(st.integers(0, 255))), *proof[at + 1 :]]
    elif what == "shorter":
        changed["proof"] = proof[:-1]
    elif what == "longer":
        changed["proof"] = [*proof, data.draw(st.sampled_from([root, EMPTY_ROOT, proof[0]]))]
    else:
        changed["proof"] = proof[::-1] if len(proof) > 1 else []
    with pytest.raises(LedgerVerificationError):
        verify_inclusion(**changed)  # type: ignore[arg-type]


@given(st.data())
def test_no_other_beginning_verifies(data: st.DataObject) -> None:
    """Change, drop or swap any entry of the older tree: its proof towards the newer one cannot be made."""
    new = data.draw(st.integers(2, 60))
    old = data.draw(st.integers(1, new))
    at = data.draw(st.integers(0, old - 1))
    other = [*LEAVES[:at], _flip(LEAVES[at], data.draw(st.integers(0, 255))), *LEAVES[at + 1 : old]]
    for proof in (consistency_proof(LEAVES, old, new), consistency_proof([*other, *LEAVES[old:]], old, new)):
        with pytest.raises(LedgerVerificationError):
            verify_consistency(
                old_size=old,
                old_root=root_from_leaves(other),
                new_size=new,
                new_root=root_from_leaves(LEAVES[:new]),
                proof=proof,
            )


@given(st.integers(0, 130), st.integers(0, 130))
def test_a_compact_range_continues_where_another_stopped(first: int, more: int) -> None:
    tree = CompactRange()
    for leaf in LEAVES[:first]:
        tree.append(leaf)
    kept = CompactRange(size=tree.size, hashes=tree.hashes)
    copy = tree.copy()
    for leaf in LEAVES[first : first + more]:
        kept.append(leaf)
    assert kept.root() == root_from_leaves(LEAVES[: first + more])
    assert copy.root() == tree.root() == root_from_leaves(LEAVES[:first])
    assert len(kept.hashes) <= 8


def test_subtrees_append_as_their_leaves_do() -> None:
    tree = CompactRange()
    for start in range(0, 128, 16):
        tree.append_subtree(root_from_leaves(LEAVES[start : start + 16]), 16)
    assert tree.root() == root_from_leaves(LEAVES[:128])
    tree.append(LEAVES[128])
    with pytest.raises(ValueError, match="does not fit"):
        tree.append_subtree(EMPTY_ROOT, 16)
    with pytest.raises(ValueError, match="does not fit"):
        tree.append_subtree(EMPTY_ROOT, 3)


def test_a_state_that_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="hashes for size 3"):
        CompactRange(size=3, hashes=[EMPTY_ROOT])
    with pytest.raises(ValueError, match="hashes for size 1"):
        CompactRange(size=1, hashes=[b"short"])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: inclusion_proof(LEAVES, 130), "index is 130"),
        (lambda: inclusion_proof(LEAVES, -1), "index is -1"),
        (lambda: inclusion_proof(LEAVES, 0, size=131), "size is 131"),
        (lambda: inclusion_proof([], 0), "index is 0"),
        (lambda: consistency_proof(LEAVES, 5, 4), "old is 5"),
        (lambda: consistency_proof(LEAVES, 0, 131), "new is 131"),
    ],
)
def test_proofs_of_what_is_not_there_are_not_made(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_a_node_is_no_leaf() -> None:
    """Second preimages: the two prefixes keep a node from being passed off as an entry."""
    assert leaf_hash(LEAVES[0] + LEAVES[1]) != node_hash(LEAVES[0], LEAVES[1])


def probes(kind: str) -> list[tuple[str, dict[str, Any]]]:
    """transparency-dev/merkle's probes; empty where the data is absent."""
    root = os.environ.get("FEDTWIN_DATA")
    archive = Path(root or ".") / "vectors" / "merkle_testdata.tar.gz"
    if root is None or not archive.is_file():
        return []
    with tarfile.open(archive) as tar:
        members = [m for m in tar.getmembers() if m.isfile() and f"/{kind}/" in f"/{m.name}"]
        return [(m.name, json.loads(tar.extractfile(m).read())) for m in members]  # type: ignore[union-attr]


@pytest.mark.parametrize("kind", ["inclusion", "consistency"])
def test_transparency_dev_probes_are_judged_as_published(kind: str) -> None:
    found = probes(kind)
    if not found:
        pytest.skip(f"FEDTWIN_DATA has no vectors/merkle_testdata.tar.gz: the {kind} probes were NOT run")
    assert len(found) == 98
    wrong = [name for name, probe in found if _is_refused(kind, probe) != probe["wantErr"]]
    assert wrong == []


def _is_refused(kind: str, probe: dict[str, Any]) -> bool:
    proof = [_decode(text) for text in probe["proof"] or []]
    try:
        if kind == "inclusion":
            verify_inclusion(
                leaf=_decode(probe["leafHash"]),
                index=probe["leafIdx"],
                size=probe["treeSize"],
                proof=proof,
                root=_decode(probe["root"]),
            )
        else:
            verify_consistency(
                old_size=probe["size1"],
                old_root=_decode(probe["root1"]),
                new_size=probe["size2"],
                new_root=_decode(probe["root2"]),
                proof=proof,
            )
    except LedgerVerificationError:
        return True
    return False


def _decode(text: str | None) -> bytes:
    return base64.b64decode(text) if text else b""


def _flip(value: bytes, bit: int) -> bytes:
    return bytes(byte ^ (1 << bit % 8 if at == bit // 8 else 0) for at, byte in enumerate(value))
