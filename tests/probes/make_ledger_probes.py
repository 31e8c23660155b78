"""Writes the ledger probes: small exports, each with one named fault, and what a verifier must say of it.

    python tests/probes/make_ledger_probes.py

A probe is JSON: `key` (the auditor's), `checkpoint`, `history` and `since` (signed notes as text), `entries` (each the
canonical JSON as text, or a number n for entry n of happy-path.json), `tiles` (only where they are not those of the
entries) and `broken`: the names of exactly the checks that must break, none for a ledger that holds. Keys come from
fixed seeds and are good for nothing else.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from privacy.accounting import spend_of
from privacy.canonical import canonical_bytes, digest
from privacy.checkpoint import Checkpoint, SignedCheckpoint, cosign, parse_checkpoint, sign_checkpoint
from privacy.events import MechanismEvent
from privacy.findings import NO_ARRAYS
from privacy.ledger import (
    Aggregated,
    Body,
    CohortDrawn,
    Entry,
    GateJudged,
    Receipted,
    Refused,
    Released,
    SiteEnrolled,
    SiteLeft,
    SitePolicy,
    StudyDefined,
    Withdrawn,
    encode_entry,
    rotate_key,
)
from privacy.merkle import leaf_hash, root_from_leaves
from privacy.receipt import Receipt, open_receipt, sign_receipt, time_text
from privacy.signing import SigningKey

FOLDER = Path(__file__).parent / "ledger"
START = datetime(2026, 1, 1, tzinfo=UTC)
DELTA = 1e-5
LOG = SigningKey.from_seed(b"L" * 32, name="fedtwin.example/probes")
NEW_LOG = SigningKey.from_seed(b"N" * 32, name="fedtwin.example/probes")
MERCY = SigningKey.from_seed(b"M" * 32, name="mercy")
NEW_MERCY = SigningKey.from_seed(b"m" * 32, name="mercy")
HILL = SigningKey.from_seed(b"H" * 32, name="hill")
STRANGER = SigningKey.from_seed(b"S" * 32, name="mercy")
EVENT = MechanismEvent(phase="measure", kind="gaussian", noise_multiplier=8.0)
POLICY = {"epsilon_per_study": "3.0", "epsilon_total": "4.0", "max_delta": "1e-05"}
STUDY = StudyDefined(definition={"name": "probe"}, epsilon=2.0, delta=DELTA)
WEIGHTS = [digest(["weights", n]) for n in range(4)]


def cost(rounds: int, delta: float = DELTA) -> float:
    return spend_of([EVENT] * rounds, delta=delta).epsilon


def receipt(site: SigningKey, round_number: int, **changes: Any) -> Receipted:
    fields: dict[str, Any] = {
        "study_digest": STUDY.study_digest,
        "run": "run-1",
        "round": round_number,
        "site": site.name,
        "base_digest": NO_ARRAYS if round_number == 1 else WEIGHTS[round_number - 1],
        "update_digest": digest([site.name, round_number]),
        "events": (EVENT,),
        "spend_epsilon": cost(round_number),
        "spend_delta": DELTA,
        "policy_digest": digest(POLICY),
        "code_digest": digest("code"),
        "dataset_fingerprint": "hmac-sha256:" + "0" * 64,
        "noise_source": "aes-ctr",
        "nonce": f"nonce-{site.name}-{round_number}",
        "issued_at": START + timedelta(minutes=round_number),
    }
    return Receipted(envelope=sign_receipt(Receipt(**{**fields, **changes}), site))


def aggregate(round_number: int, receipts: list[Receipted], **changes: Any) -> Aggregated:
    fields: dict[str, Any] = {
        "study_digest": STUDY.study_digest,
        "run": "run-1",
        "round": round_number,
        "base_digest": NO_ARRAYS if round_number == 1 else WEIGHTS[round_number - 1],
        "receipts": tuple(r.receipt_digest for r in receipts),
        "result_digest": WEIGHTS[round_number],
        "next_base_digest": WEIGHTS[round_number],
    }
    return Aggregated(**{**fields, **changes})


def happy() -> dict[str, Body]:
    """A ledger where everything holds, by name, in order: two sites, two rounds, a release, a cohort."""
    rounds = {n: [receipt(MERCY, n), receipt(HILL, n)] for n in (1, 2)}
    released = Released(
        study_digest=STUDY.study_digest, run="run-1", round=2, weights_digest=WEIGHTS[2], state="published"
    )
    return {
        "enrol-mercy": SiteEnrolled(site="mercy", verify_key=MERCY.public.text, node_key="ssh mercy"),
        "policy-mercy": SitePolicy(site="mercy", policy=POLICY),
        "enrol-hill": SiteEnrolled(site="hill", verify_key=HILL.public.text, node_key="ssh hill"),
        "policy-hill": SitePolicy(site="hill", policy=POLICY),
        "study": STUDY,
        "mercy-1": rounds[1][0],
        "hill-1": rounds[1][1],
        "aggregate-1": aggregate(1, rounds[1]),
        "mercy-2": rounds[2][0],
        "hill-2": rounds[2][1],
        "aggregate-2": aggregate(2, rounds[2]),
        "release": released,
        "cohort": CohortDrawn(
            cohort="cohort-1",
            release_digest=released.release_digest,
            rows=100,
            conditions_digest=digest({}),
            files={"patients.csv": digest("file")},
        ),
    }


def encode(bodies: dict[str, Body]) -> list[bytes]:
    return [
        encode_entry(Entry(body=body, logged_at=time_text(START + timedelta(hours=n))))
        for n, body in enumerate(bodies.values(), 1)
    ]


def head(entries: list[bytes], key: SigningKey = LOG) -> Checkpoint:
    return Checkpoint(origin=key.name, size=len(entries), root=root_from_leaves(map(leaf_hash, entries)))


def note(entries: list[bytes], cosigners: tuple[SigningKey, ...] = (), key: SigningKey = LOG) -> bytes:
    lines = [cosign(head(entries, key), site, timestamp=1767225600) for site in cosigners]
    return parse_checkpoint(sign_checkpoint(head(entries, key), key)).with_signatures(lines).encode()


def probe(
    broken: list[str],
    entries: list[bytes],
    *,
    checkpoint: bytes | None = None,
    history: list[bytes] | None = None,
    since: bytes | None = None,
    key: SigningKey = LOG,
    tiles: dict[str, bytes] | None = None,
) -> dict[str, Any]:
    history = [note(entries[:9], (MERCY, HILL))] if history is None else history
    return {
        "broken": broken,
        "key": key.public.text,
        "checkpoint": (note(entries) if checkpoint is None else checkpoint).decode(),
        "history": [old.decode() for old in history],
        "since": None if since is None else since.decode(),
        "entries": [entry.decode() for entry in entries],
        "tiles": {name: base64.b64encode(data).decode() for name, data in (tiles or {}).items()},
    }


def lie(
    broken: list[str], change: Callable[[dict[str, Body]], dict[str, Body]], **more: Any
) -> dict[str, Any]:
    """A coordinator (or a site) that lies and signs its lie well."""
    return probe(broken, encode(change(happy())), **more)


def put(**bodies: Body) -> Callable[[dict[str, Body]], dict[str, Body]]:
    """Replace entries by name; a name that is not there is added at the end."""
    return lambda all_bodies: {
        **all_bodies,
        **{name.replace("_", "-"): body for name, body in bodies.items()},
    }


def drop(*names: str) -> Callable[[dict[str, Body]], dict[str, Body]]:
    return lambda bodies: {name: body for name, body in bodies.items() if name not in names}


def after(place: str, **bodies: Body) -> Callable[[dict[str, Body]], dict[str, Body]]:
    def change(all_bodies: dict[str, Body]) -> dict[str, Body]:
        result: dict[str, Body] = {}
        for name, body in all_bodies.items():
            result[name] = body
            if name == place:
                result.update(bodies)
        return result

    return change


def round_2(mercy: Receipted, **changes: Any) -> Callable[[dict[str, Body]], dict[str, Body]]:
    """Another receipt of mercy in round 2, with an aggregate that uses it."""
    return put(mercy_2=mercy, aggregate_2=aggregate(2, [mercy, receipt(HILL, 2)], **changes))


def resigned(mercy: SigningKey, signer: SigningKey, round_number: int) -> Receipted:
    """The receipt of a round, signed by another key of the same name."""
    good = open_receipt(receipt(mercy, round_number).envelope, mercy.public)
    return Receipted(envelope=sign_receipt(good, signer))


def raw(change: Callable[[list[bytes]], list[bytes]], broken: list[str]) -> dict[str, Any]:
    """Entries changed under a checkpoint that was signed before."""
    entries = encode(happy())
    return probe(
        broken, change(list(entries)), checkpoint=note(entries), history=[note(entries[:9], (MERCY, HILL))]
    )


def signed_raw(change: Callable[[list[bytes]], list[bytes]], broken: list[str]) -> dict[str, Any]:
    """Entries changed before the checkpoint was signed."""
    return probe(broken, change(encode(happy())))


def swapped(entries: list[bytes], a: int, b: int) -> list[bytes]:
    entries[a], entries[b] = entries[b], entries[a]
    return entries


def edited(entries: list[bytes], index: int, old: bytes, new: bytes) -> list[bytes]:
    assert old in entries[index], (old, entries[index])
    entries[index] = entries[index].replace(old, new, 1)
    return entries


def probes() -> dict[str, dict[str, Any]]:
    entries = encode(happy())
    good = note(entries)
    witnessed = note(entries[:9], (MERCY, HILL))
    bodies = list(happy().items())
    rotated = dict([*bodies[:8], ("rotation", rotate_key("coordinator", LOG, NEW_LOG)), *bodies[8:]])
    rotated_entries = encode(rotated)
    new_mercy_2 = resigned(MERCY, NEW_MERCY, 2)
    mercy_rotated = {
        **dict(bodies[:8]),
        "rotation": rotate_key("site", MERCY, NEW_MERCY),
        **dict(bodies[8:]),
        "mercy-2": new_mercy_2,
        "aggregate-2": aggregate(2, [new_mercy_2, receipt(HILL, 2)]),
    }
    again = rotate_key("coordinator", LOG, NEW_LOG)
    twice_rotated = encode({**happy(), "rotation": again, "again": again})
    boasting = receipt(MERCY, 1, spend_epsilon=1.5)
    falling = put(mercy_1=boasting, aggregate_1=aggregate(1, [boasting, receipt(HILL, 1)]))
    nothing = [receipt(MERCY, 2, base_digest=NO_ARRAYS), receipt(HILL, 2, base_digest=NO_ARRAYS)]
    other_base = put(
        mercy_2=nothing[0], hill_2=nothing[1], aggregate_2=aggregate(2, nothing, base_digest=NO_ARRAYS)
    )
    fork = encode(put(cohort=replace(happy()["cohort"], rows=99))(happy()))
    early_fork = encode(
        after(
            "study",
            refused=Refused(
                site="hill", study_digest=STUDY.study_digest, run="run-0", round=1, code="policy"
            ),
        )(happy())
    )
    signed = parse_checkpoint(good)
    stranger_line = cosign(head(entries), SigningKey.from_seed(b"X" * 32, name="nobody"), timestamp=1)
    withdrawn = Withdrawn(release_digest=happy()["release"].release_digest, reason="operator")
    total = SitePolicy(site="mercy", policy={**POLICY, "epsilon_total": "0.5"})
    per_study = SitePolicy(site="mercy", policy={**POLICY, "epsilon_per_study": "0.5"})
    per_run = SitePolicy(site="mercy", policy={**POLICY, "epsilon_per_run": "0.5"})
    strict_delta = SitePolicy(site="mercy", policy={**POLICY, "max_delta": "1e-06"})

    def under(policy: SitePolicy) -> Callable[[dict[str, Body]], dict[str, Body]]:
        mercy = {n: receipt(MERCY, n, policy_digest=policy.policy_digest) for n in (1, 2)}
        return put(
            policy_mercy=policy,
            mercy_1=mercy[1],
            mercy_2=mercy[2],
            aggregate_1=aggregate(1, [mercy[1], receipt(HILL, 1)]),
            aggregate_2=aggregate(2, [mercy[2], receipt(HILL, 2)]),
        )

    other_delta = {n: receipt(MERCY, n, spend_delta=1e-6, spend_epsilon=cost(n, 1e-6)) for n in (1, 2)}
    small = STUDY.__class__(definition={"name": "small"}, epsilon=0.5, delta=DELTA)

    def small_study(happy_bodies: dict[str, Body]) -> dict[str, Body]:
        changes = {"study_digest": small.study_digest}
        rounds = {n: [receipt(MERCY, n, **changes), receipt(HILL, n, **changes)] for n in (1, 2)}
        return {
            **drop("release", "cohort")(happy_bodies),
            "study": small,
            **{f"{name}-{n}": rounds[n][i] for n in (1, 2) for i, name in enumerate(("mercy", "hill"))},
            **{f"aggregate-{n}": aggregate(n, rounds[n], **changes) for n in (1, 2)},
        }

    return {
        # What holds
        "happy-path": probe([], entries),
        "empty-ledger": probe([], [], history=[]),
        "kept-checkpoint-continued": probe([], entries, since=note(entries[:5])),
        "kept-checkpoint-of-the-same-size": probe([], entries, since=good),
        "coordinator-key-rotated-old-key-pinned": probe(
            [],
            rotated_entries,
            checkpoint=note(rotated_entries, key=NEW_LOG),
            history=[note(rotated_entries[:8], (MERCY, HILL))],
        ),
        "coordinator-key-rotated-new-key-pinned": probe(
            [],
            rotated_entries,
            checkpoint=note(rotated_entries, key=NEW_LOG),
            history=[note(rotated_entries[:8], (MERCY, HILL))],
            key=NEW_LOG,
        ),
        "site-key-rotated": probe([], encode(mercy_rotated)),
        "cautious-claim": lie([], round_2(receipt(MERCY, 2, spend_epsilon=1.5))),
        "site-left-at-the-end": lie([], put(left=SiteLeft(site="hill", reason="left"))),
        "withdrawn-at-the-end": lie([], put(withdrawn=withdrawn)),
        "refusal": lie(
            [],
            after(
                "aggregate-1",
                refused=Refused(
                    site="hill", study_digest=STUDY.study_digest, run="run-1", round=2, code="budget"
                ),
            ),
        ),
        # Bytes changed after signing
        "entry-changed": raw(lambda e: edited(e, 12, b'"rows":100', b'"rows":900'), ["tree"]),
        "entry-deleted": raw(lambda e: e[:12], ["entries", "tree"]),
        "entry-deleted-in-the-middle": raw(
            lambda e: e[:6] + e[7:] + [e[12]], ["tree", "history", "witnesses", "rounds"]
        ),
        "entries-swapped": raw(lambda e: swapped(e, 5, 6), ["tree", "history", "witnesses"]),
        "tile-changed": probe(["tree"], entries, tiles={"tile/0/000.p/13": bytes(32 * 13)}),
        "root-changed": probe(
            ["checkpoint", "tree"],
            entries,
            checkpoint=replace(signed, checkpoint=replace(signed.checkpoint, root=bytes(32))).encode(),
        ),
        "size-changed": probe(
            ["checkpoint", "entries", "tree"],
            entries,
            checkpoint=replace(signed, checkpoint=replace(signed.checkpoint, size=12)).encode(),
        ),
        "signature-of-another-size": probe(
            ["checkpoint"],
            entries,
            checkpoint=replace(signed, signatures=parse_checkpoint(note(entries[:5])).signatures).encode(),
        ),
        "signed-by-another-key": probe(["checkpoint"], entries, checkpoint=note(entries, key=NEW_LOG)),
        "another-log": probe(
            ["checkpoint"],
            entries,
            checkpoint=note(entries, key=SigningKey.from_seed(b"L" * 32, name="other.example")),
        ),
        "cosignature-of-another-size": probe(
            ["witnesses"],
            entries,
            history=[
                witnessed,
                SignedCheckpoint(
                    checkpoint=head(entries[:10]),
                    signatures=(
                        parse_checkpoint(note(entries[:10])).signatures[0],
                        *parse_checkpoint(witnessed).signatures[1:],
                    ),
                ).encode(),
            ],
        ),
        "cosigned-by-a-stranger": probe(
            ["witnesses"], entries, checkpoint=signed.with_signatures([stranger_line]).encode()
        ),
        # Two histories
        "rolled-back": probe(["since"], entries[:12], since=good),
        "forked-since": probe(["since"], fork, since=good),
        "forked-early-since": probe(
            ["since"], early_fork, since=witnessed, history=[note(early_fork[:9], (MERCY, HILL))]
        ),
        "kept-checkpoint-of-another-key": probe(["since"], entries, since=note(entries[:5], key=NEW_LOG)),
        "history-of-a-fork": probe(
            ["history", "witnesses"], fork, history=[note(early_fork[:9], (MERCY, HILL))]
        ),
        "history-unsigned": probe(
            ["history"],
            entries,
            history=[
                replace(
                    parse_checkpoint(witnessed),
                    signatures=(*parse_checkpoint(note(entries[:9], (MERCY, HILL), key=NEW_LOG)).signatures,),
                ).encode()
            ],
        ),
        "history-out-of-order": probe(["history"], entries, history=[witnessed, note(entries[:5])]),
        "never-countersigned": probe(["witnesses"], entries, history=[]),
        "countersigned-by-one-of-two": probe(["witnesses"], entries, history=[note(entries[:9], (MERCY,))]),
        "history-with-broken-framing": probe(
            ["history"], entries, tiles={"checkpoints/001": b"\x00\x09short"}
        ),
        "kept-checkpoint-beyond-a-missing-bundle": probe(
            ["entries", "tree", "since"],
            [],
            checkpoint=good,
            since=note(entries[:5]),
            history=[],
            tiles={"tile/entries/000.p/13": b"\x00\x05half"},
        ),
        # A coordinator's lies, well signed
        "entry-with-a-space": signed_raw(
            lambda e: edited(e, 4, b":", b": "), ["entries", "receipts", "rounds"]
        ),
        "entry-with-a-duplicate-name": signed_raw(
            lambda e: edited(e, 12, b'"rows":100', b'"rows":100,"rows":100'), ["entries"]
        ),
        "entry-of-an-unknown-kind": signed_raw(
            lambda e: edited(e, 12, b'"kind":"cohort"', b'"kind":"cohorts"'), ["entries"]
        ),
        "entry-with-an-extra-field": signed_raw(
            lambda e: edited(e, 12, b'"rows":100', b'"rows":100,"size":1'), ["entries"]
        ),
        "entry-with-a-float": signed_raw(
            lambda e: edited(e, 12, b'"rows":100', b'"rows":100.5'), ["entries"]
        ),
        "receipt-changed": signed_raw(lambda e: _changed_payload(e, 8), ["receipts", "rounds"]),
        "receipt-by-a-stranger": lie(["receipts", "rounds"], round_2(resigned(MERCY, STRANGER, 2))),
        "receipt-of-a-site-not-enrolled": lie(["receipts", "rounds", "witnesses"], drop("enrol-mercy")),
        "receipt-twice": lie(["receipts"], after("mercy-2", again=receipt(MERCY, 2))),
        "receipt-of-another-content-twice": lie(
            ["receipts"], after("mercy-2", again=receipt(MERCY, 2, nonce="other"))
        ),
        "receipt-removed": lie(["rounds"], drop("mercy-2")),
        "receipt-for-an-unknown-study": lie(["receipts", "rounds"], drop("study")),
        "policy-not-logged": lie(["receipts"], drop("policy-mercy")),
        "policy-raised": lie(
            ["receipts"],
            put(policy_mercy=SitePolicy(site="mercy", policy={**POLICY, "epsilon_total": "99.0"})),
        ),
        "key-swapped-by-enrolment": lie(
            ["keys"], put(again=SiteEnrolled(site="mercy", verify_key=STRANGER.public.text, node_key="x"))
        ),
        "rotation-of-a-key-not-in-force": lie(
            ["keys"], put(rotation=rotate_key("site", STRANGER, NEW_MERCY))
        ),
        "coordinator-rotation-by-a-stranger": probe(
            ["checkpoint"],
            encode(
                put(
                    rotation=rotate_key(
                        "coordinator", SigningKey.from_seed(b"X" * 32, name=LOG.name), NEW_LOG
                    )
                )(happy())
            ),
            checkpoint=note(
                encode(
                    put(
                        rotation=rotate_key(
                            "coordinator", SigningKey.from_seed(b"X" * 32, name=LOG.name), NEW_LOG
                        )
                    )(happy())
                ),
                key=NEW_LOG,
            ),
            history=[note(entries[:9], (MERCY, HILL), key=SigningKey.from_seed(b"X" * 32, name=LOG.name))],
        ),
        "study-again-with-another-budget": lie(["entries"], put(again=replace(STUDY, epsilon=9.0))),
        "site-left-twice": lie(
            ["keys"],
            put(left=SiteLeft(site="hill", reason="left"), again=SiteLeft(site="hill", reason="left")),
        ),
        "policy-of-a-stranger": lie(["receipts"], put(policy_x=SitePolicy(site="nobody", policy=POLICY))),
        "coordinator-key-replaced-twice-from-the-first": probe(
            ["keys"],
            twice_rotated,
            checkpoint=note(twice_rotated, key=NEW_LOG),
            history=[note(twice_rotated[:9], (MERCY, HILL))],
        ),
        "run-of-another-study": lie(
            ["receipts"],
            put(
                study_2=small, other=receipt(MERCY, 3, study_digest=small.study_digest, spend_epsilon=cost(1))
            ),
        ),
        "claim-falls-to-what-the-rest-costs": lie(["spend"], falling),
        "receipts-out-of-order": lie(["receipts"], round_2(receipt(MERCY, 2, issued_at=START))),
        "refusal-of-a-stranger": lie(
            ["rounds"],
            put(
                refused=Refused(
                    site="nobody", study_digest=STUDY.study_digest, run="run-1", round=3, code="budget"
                )
            ),
        ),
        "aggregate-of-an-old-round": lie(
            ["rounds"], put(again=aggregate(1, [receipt(MERCY, 1)], base_digest=WEIGHTS[2]))
        ),
        "aggregate-skips-back-to-another-result": lie(["rounds"], other_base),
        "withdrawal-of-no-release": lie(
            ["releases"], put(gone=replace(withdrawn, release_digest=WEIGHTS[0]))
        ),
        "gate-on-no-release": lie(
            ["releases"], put(judged=GateJudged(release_digest=WEIGHTS[0], verdict="passed", card={}))
        ),
        "events-beyond-any-promise": lie(
            ["spend"], round_2(receipt(MERCY, 2, events=(replace(EVENT, noise_multiplier=0.01),)))
        ),
        "underclaimed": lie(["spend"], round_2(receipt(MERCY, 2, spend_epsilon=round(cost(2) - 0.001, 6)))),
        "claim-falls": lie(["spend"], round_2(receipt(MERCY, 2, spend_epsilon=round(cost(1) - 0.001, 6)))),
        "seeded-noise": lie(["noise"], round_2(receipt(MERCY, 2, noise_source="torch"))),
        "beyond-the-study": lie(["caps"], small_study),
        "beyond-the-policy-per-study": lie(["caps"], under(per_study)),
        "beyond-the-policy-per-run": lie(["caps"], under(per_run)),
        "beyond-the-policy-in-total": lie(["caps"], under(total)),
        "beyond-the-policy-delta": lie(["caps"], under(strict_delta)),
        "another-delta": lie(
            ["caps"],
            lambda b: put(
                mercy_1=other_delta[1],
                mercy_2=other_delta[2],
                aggregate_1=aggregate(1, [other_delta[1], receipt(HILL, 1)]),
                aggregate_2=aggregate(2, [other_delta[2], receipt(HILL, 2)]),
            )(b),
        ),
        "aggregate-from-nowhere": lie(
            ["rounds"],
            put(aggregate_2=aggregate(2, [receipt(MERCY, 2), receipt(HILL, 2)], base_digest=WEIGHTS[3])),
        ),
        "aggregate-of-an-old-receipt": lie(
            ["rounds"], put(aggregate_2=aggregate(2, [receipt(MERCY, 1), receipt(HILL, 2)]))
        ),
        "aggregate-twice": lie(
            ["rounds"], after("aggregate-2", again=aggregate(2, [receipt(MERCY, 2), receipt(HILL, 2)]))
        ),
        "aggregate-missing": lie(["rounds"], drop("aggregate-1")),
        "aggregate-of-a-site-that-left": lie(
            ["rounds"], after("hill-2", left=SiteLeft(site="hill", reason="revoked"))
        ),
        "receipt-from-another-generator": lie(["rounds"], round_2(receipt(MERCY, 2, base_digest=WEIGHTS[3]))),
        "release-of-unlogged-weights": lie(
            ["releases", "cohorts"], put(release=replace(happy()["release"], weights_digest=WEIGHTS[3]))
        ),
        "release-of-an-unknown-run": lie(["releases"], put(release=replace(happy()["release"], run="run-9"))),
        "release-after-withdrawal": lie(
            ["releases"], lambda b: put(withdrawn=withdrawn, again=happy()["release"])(b)
        ),
        "cohort-before-its-release": lie(
            ["cohorts"], lambda b: {**drop("release")(b), "release": b["release"]}
        ),
        "cohort-from-a-candidate": lie(
            ["cohorts"], put(release=replace(happy()["release"], state="candidate"))
        ),
        "cohort-after-withdrawal": lie(["cohorts"], after("release", withdrawn=withdrawn)),
    }


def _changed_payload(entries: list[bytes], index: int) -> list[bytes]:
    """The receipt's epsilon lowered in the payload, its signature left."""
    value = json.loads(entries[index])
    payload = json.loads(base64.b64decode(value["body"]["envelope"]["payload"]))
    payload["spend_epsilon"] = "0.1"
    value["body"]["envelope"]["payload"] = base64.b64encode(canonical_bytes(payload)).decode()
    entries[index] = canonical_bytes(value)
    return entries


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    for old in FOLDER.glob("*.json"):
        old.unlink()
    known = {text: number for number, text in enumerate(probes()["happy-path"]["entries"])}
    for name, content in probes().items():
        if name != "happy-path":
            content["entries"] = [known.get(text, text) for text in content["entries"]]
        (FOLDER / f"{name}.json").write_text(
            json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
        )
    print(f"{len(probes())} probes in {FOLDER}")


if __name__ == "__main__":
    main()
