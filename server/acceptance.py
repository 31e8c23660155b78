"""Whether a site's reply may count: signature, freshness, digests, shapes, finiteness and size, checked once."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from models.exchange import RoundReply, RoundRequest
from privacy.events import MechanismEvent
from privacy.receipt import Receipt, ReceiptError, open_receipt
from privacy.signing import VerifyKey


class ReplyRejectedError(Exception):
    """A reply that must not count; the round goes on without it."""


def accept_reply(
    request: RoundRequest, reply: RoundReply, *, site: str, key: VerifyKey, expected: Mapping[str, Tensor]
) -> Receipt:
    """Check a reply to `measure` or `refine` against its request and the key that the site enrolled with.

    Args:
        request: what the site was asked.
        reply: what came back.
        site: the site that was asked.
        key: that site's receipt key.
        expected: arrays of the names, shapes and dtypes that the reply must have; the values do not matter.

    Returns:
        The receipt, verified.

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
    _same("receipt's update digest", receipt.update_digest, reply.update_digest)
    planned = MechanismEvent.from_dict(request.study.mechanism(request.study.phase_of(request.round)))
    _same("receipt's events", list(receipt.events), [planned])
    _check_arrays(reply.arrays, expected)
    if request.kind == "refine":
        _check_norm(reply.arrays, request.study.federation.max_update_norm)
    return receipt


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


def _check_norm(arrays: Mapping[str, Tensor], bound: float) -> None:
    norm = sum(float(array.double().square().sum()) for array in arrays.values()) ** 0.5
    if norm > bound:
        raise ReplyRejectedError(f"the update's norm is {norm:.3g}, beyond the study's bound {bound:.3g}")
