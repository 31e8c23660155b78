"""Messages by parts: what travels never changes what is asked, and nothing is taken for what it is not."""

from __future__ import annotations

import json

import pytest
import torch

from models.digests import digest_of
from models.exchange import ExchangeError, RoundReply, RoundRequest
from models.parts import PartsLackingError
from models.study import Study
from models.weights import SealedArrays, encode_arrays

STUDY = Study.from_dict(
    {
        "name": "small",
        "privacy": {"epsilon": 1.0, "delta": 1e-5},
        "table": {"columns": [{"name": "sex", "kind": "categorical", "categories": ["f", "m"]}]},
    }
)


class Kept(dict):
    """A store in memory."""

    def find(self, digest: str) -> bytes | None:
        return self.get(digest)

    def keep(self, digest: str, data: bytes) -> None:
        self[digest] = data


def request(**changes) -> RoundRequest:
    arrays = {"logits": torch.arange(6.0).view(2, 3), "anchor": torch.ones(500, dtype=torch.float64)}
    values = {"kind": "refine", "run": "r", "round": 2, "nonce": "n", "study": STUDY, "arrays": arrays}
    return RoundRequest(**{**values, **changes})


def test_a_request_reads_back_as_it_was():
    asked = request(checkpoint={"note": "x", "since": None, "proof": []})
    read = RoundRequest.decode(*asked.encode())
    assert read.study == asked.study
    assert read.checkpoint == asked.checkpoint
    assert all(torch.equal(read.arrays[name], asked.arrays[name]) for name in asked.arrays)
    assert (read.digest, read.base_digest, read.parts) == (asked.digest, asked.base_digest, asked.parts)


def test_the_study_travels_under_the_digest_that_receipts_name():
    assert request().parts["study"] == STUDY.digest == digest_of(STUDY.encoded)


def test_the_base_digest_is_that_of_all_arrays_as_one_record():
    asked = request()
    assert asked.base_digest == digest_of(encode_arrays(asked.arrays))
    assert request(arrays={}).base_digest == digest_of(b"")


def test_what_is_omitted_changes_neither_the_digests_nor_what_is_read():
    asked, store = request(), Kept()
    first = RoundRequest.decode(*asked.encode(), store=store)
    body, payload = asked.encode(held=set(asked.parts.values()))
    assert payload == b""
    again = RoundRequest.decode(body, payload, store=store)
    assert (again.digest, again.base_digest) == (first.digest, first.base_digest)
    assert torch.equal(again.arrays["anchor"], asked.arrays["anchor"])


def test_only_what_is_not_held_is_sent():
    asked = request()
    whole = len(asked.encode()[1])
    without = len(asked.encode(held={asked.parts["anchor"], asked.parts["study"]})[1])
    assert whole - without > 4_000  # the anchor's 500 float64 and the study
    assert without < 200


def test_a_changed_study_has_its_own_bytes_and_digest_also_when_the_first_ones_were_asked_for():
    digest = STUDY.digest
    changed = STUDY.model_copy(update={"title": "another"})
    assert changed.digest != digest
    assert b"another" in changed.encoded
    assert changed == Study.from_dict(changed.to_dict())
    assert changed.calibrated(measure=1.0, refine=None).digest not in {digest, changed.digest}


def test_a_part_that_is_lacking_is_named_and_the_reply_asks_for_it():
    asked = request()
    body, payload = asked.encode(held={asked.parts["anchor"]})
    with pytest.raises(PartsLackingError) as raised:
        RoundRequest.decode(body, payload, store=Kept())
    reply = RoundReply.decode(*RoundReply.of_lacking(raised.value, site="ash").encode())
    assert reply.lacks == (asked.parts["anchor"],)
    assert (reply.kind, reply.run, reply.round, reply.nonce) == ("refine", "r", 2, "n")
    with pytest.raises(PartsLackingError):
        RoundRequest.decode(body, payload)  # without any store too


def test_the_same_computation_has_the_same_digest_and_another_another():
    assert request(nonce="m", checkpoint={"note": "y"}).digest == request().digest
    others = [
        request(round=3),
        request(run="s"),
        request(kind="measure"),
        request(arrays={"logits": torch.zeros(2, 3)}),
        request(study=STUDY.model_copy(update={"title": "another"})),
    ]
    assert len({one.digest for one in [request(), *others]}) == 6


def _changed(body: bytes, **fields: object) -> bytes:
    return json.dumps({**json.loads(body), **fields}).encode()


def _spoilt() -> dict[str, tuple[bytes, bytes]]:
    asked = request()
    body, payload = asked.encode()
    sent = json.loads(body)["sent"]
    return {
        "flipped": (body, payload[:-1] + bytes([payload[-1] ^ 1])),
        "short": (body, payload[:-1]),
        "long": (body, payload + b"x"),
        "no study": (_changed(body, parts={"logits": asked.parts["logits"]}), payload),
        "no digests": (_changed(body, parts=None), payload),
        "digest of no text": (_changed(body, parts={**asked.parts, "logits": 3}), payload),
        "unknown name": (_changed(body, sent=[*sent, ["else", 0]]), payload),
        "negative length": (_changed(body, sent=[["logits", -1]]), payload),
        "no list": (_changed(body, sent="study"), payload),
        "other name": (
            _changed(
                body,
                parts={("weights" if k == "logits" else k): v for k, v in asked.parts.items()},
                sent=[["weights" if k == "logits" else k, v] for k, v in sent],
            ),
            payload,
        ),
    }


@pytest.mark.parametrize("name", _spoilt())
def test_a_message_whose_parts_are_not_what_it_says_is_refused(name):
    with pytest.raises(ExchangeError):
        RoundRequest.decode(*_spoilt()[name])


def test_nothing_is_kept_of_a_message_that_is_not_what_it_says():
    body, payload = request().encode()
    store = Kept()
    with pytest.raises(ExchangeError):
        RoundRequest.decode(body, payload[:-1] + b"?", store=store)
    assert store == {}


def test_an_array_cannot_take_the_definitions_name():
    with pytest.raises(ExchangeError, match="definition"):
        request(arrays={"study": torch.zeros(1)})


def test_a_reply_that_lacks_parts_carries_nothing_else():
    with pytest.raises(ExchangeError):
        RoundReply(
            kind="refine", run="r", round=1, nonce="n", site="s", lacks=("d",), arrays={"a": torch.ones(1)}
        )


def test_the_update_digest_is_of_the_bytes_that_came():
    reply = RoundReply(kind="refine", run="r", round=1, nonce="n", site="s", arrays={"a": torch.ones(3)})
    body, payload = reply.encode()
    assert RoundReply.decode(body, payload).update_digest == reply.update_digest == digest_of(payload)


def test_sealed_arrays_are_encoded_once(monkeypatch):
    sealed = SealedArrays({"a": torch.ones(3)})
    first = sealed.encoded
    monkeypatch.setattr("models.weights.encode_arrays", None)
    assert sealed.encoded is first
    assert sealed.digest == digest_of(first)
