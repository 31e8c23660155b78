"""Whether a site's reply may count: signature, freshness, digests, shapes, finiteness, size and sense, checked once."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from models.exchange import RoundReply, RoundRequest
from models.measurement import Measurement
from models.plausibility import ImplausibleError, check_judgements, check_moments
from privacy.canonical import digest
from privacy.events import MechanismEvent
from privacy.receipt import Receipt, ReceiptError, open_receipt
from privacy.signing import VerifyKey


class ReplyRejectedError(Exception):
    """A reply that must not count; the round goes on without it."""


def open_reply(request: RoundRequest, reply: RoundReply, *, site: str, key: VerifyKey) -> Receipt:
    """Check that a reply answers its request and carries this site's own receipt for it.

    A receipt that passes is logged even where the rest of the reply is then dropped: it says what was spent.

    Args:
        request: what the site was asked.
        reply: what came back.
        site: the site that was asked.
        key: the receipt key that this site enrolled with.

    Raises:
        ReplyRejectedError: says what is wrong, for the run's log.
    """
    _same("site", reply.site, site)
    for name in ("kind", "run", "round", "nonce"):
        _same(name, getattr(reply, name), getattr(request, name))
    if reply.receipt is None:
        raise ReplyRejectedError("there is no receipt")
    try:
        receipt = open_receipt(reply.receipt, key)
    except ReceiptError as error:
        raise ReplyRejectedError(f"the receipt does not verify: {error}") from error
    _same("receipt's site", receipt.site, site)
    _same("receipt's run", receipt.run, request.run)
    _same("receipt's round", receipt.round, request.round)
    _same("receipt's nonce", receipt.nonce, request.nonce)
    _same("receipt's study digest", receipt.study_digest, request.study.digest)
    _same("receipt's base digest", receipt.base_digest, request.base_digest)
    _same("receipt's policy digest", receipt.policy_digest, digest_of_policy(reply))
    planned = MechanismEvent.from_dict(request.study.mechanism(request.study.phase_of(request.round)))
    _same("receipt's events", list(receipt.events), [planned])
    return receipt


def check_update(
    request: RoundRequest, reply: RoundReply, receipt: Receipt, *, expected: Mapping[str, Tensor]
) -> None:
    """Check the arrays of a reply: those that the receipt vouches for, of the right form, finite and plausible.

    Args:
        request, reply, receipt: as `open_reply` has checked them.
        expected: arrays of the names, shapes and dtypes that the reply must have; the values do not matter.

    Raises:
        ReplyRejectedError: says what is wrong, for the run's log.
    """
    _same("receipt's update digest", receipt.update_digest, reply.update_digest)
    _check_arrays(reply.arrays, expected)
    study = request.study
    try:
        if request.kind == "measure":
            measurement, multiplier = Measurement.of(study, request.arrays), study.measure.noise_multiplier
            assert multiplier is not None  # a registered study is calibrated
            check_moments(
                measurement.table,
                reply.arrays["moments"],
                noise_std=multiplier * measurement.sensitivity,
                sensitivity=measurement.sensitivity,
            )
        if request.kind == "refine":
            check_judgements(reply.arrays["logits"])
    except ImplausibleError as error:
        raise ReplyRejectedError(str(error)) from error


@dataclass(frozen=True, kw_only=True)
class ReadQuote:
    """A site's answer to what the rest of the run would cost it.

    Attributes:
        spent, projected, cap: epsilon, each finite.
        reasons: why it is not ready; empty if it is.
    """

    spent: float
    projected: float
    cap: float
    reasons: tuple[str, ...]


def read_quote(reply: RoundReply) -> ReadQuote:
    """Read a reply to `quote`.

    Raises:
        ReplyRejectedError: it has not the form of a quote.
    """
    quote = reply.quote or {}
    try:
        reasons = tuple(str(reason)[:500] for reason in quote["reasons"])
        ready = quote["ready"] is True
        spent, projected, cap = (
            float(quote[name]) for name in ("spent_epsilon", "projected_epsilon", "cap_epsilon")
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ReplyRejectedError(f"the quote cannot be read ({type(error).__name__})") from error
    if ready and not all(math.isfinite(value) for value in (spent, projected, cap)):
        raise ReplyRejectedError("the quote holds a value that is not finite")
    if not ready and not reasons:
        reasons = ("not ready",)
    return ReadQuote(spent=spent, projected=projected, cap=cap, reasons=() if ready else reasons)


def digest_of_policy(reply: RoundReply) -> str:
    """The digest of the policy that a reply carries, as receipts name it.

    Raises:
        ReplyRejectedError: it is no JSON data.
    """
    try:
        return digest(dict(reply.policy or {}))
    except (TypeError, ValueError) as error:
        raise ReplyRejectedError(f"the policy cannot be read ({type(error).__name__})") from error


def _same(what: str, found: object, wanted: object) -> None:
    if found != wanted:
        raise ReplyRejectedError(f"the {what} is {found!r}, not {wanted!r}")


def _check_arrays(arrays: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    _same("set of arrays", sorted(arrays), sorted(expected))
    for name, wanted in expected.items():
        found = arrays[name]
        _same(f"shape of {name}", tuple(found.shape), tuple(wanted.shape))
        _same(f"dtype of {name}", found.dtype, wanted.dtype)
        if not bool(torch.isfinite(found).all()):
            raise ReplyRejectedError(f"{name} holds a value that is not finite")
