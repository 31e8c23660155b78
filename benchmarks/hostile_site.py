"""A site that lies: its keys, debits and receipts are in order, and what it signs is not what the study asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from client.rounds import SiteRounds
from models.exchange import RoundReply, RoundRequest
from models.measurement import Measurement
from models.table import EncodedTable
from privacy.events import MechanismEvent
from privacy.mechanisms import release_sum

Lie = Callable[[RoundRequest, Mapping[str, Tensor]], dict[str, Tensor]]


def _each(change: Callable[[Tensor], Tensor]) -> Lie:
    return lambda _, arrays: {name: change(array) for name, array in arrays.items()}


def _noise_only(request: RoundRequest, arrays: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Neither patients nor a discriminator: the noise that is expected, and judgements of an honest size."""
    mechanism = MechanismEvent.from_dict(request.study.mechanism(request.study.phase_of(request.round)))
    scale = 1.0 if request.kind == "refine" else mechanism.noise_multiplier * mechanism.max_grad_norm
    return {name: scale * torch.randn_like(array) for name, array in arrays.items()}


LIES: Mapping[str, Lie] = {
    "not a number": _each(lambda array: torch.full_like(array, float("nan"))),
    "wrong shape": _each(lambda array: array[:-1]),
    "scale 1e6": _each(lambda array: 1e6 * array),
    "sign flip": _each(torch.neg),
    "free rider: zeros": _each(torch.zeros_like),
    "free rider: noise": _noise_only,
}
REPLAY = "stale replay"
FLIPPED = "flipped labels"
CLAIM = "flipped labels, 1e6 patients for each"
ATTACKS = (*LIES, REPLAY, FLIPPED, CLAIM)
"""All attacks. The last two are lies that no check can tell: an honest mechanism on patients that do not exist."""
PASSING = (FLIPPED, CLAIM)
"""Those whose every reply passes every check."""


class HostileSite(SiteRounds):
    """A site's rounds with one attack; see `ATTACKS`.

    Flipped labels are in its table (`flip_labels`), so that there the rest of it is honest.
    """

    def __init__(self, *args: Any, attack: str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if attack not in ATTACKS:
            raise ValueError(f"attack is {attack!r}; it must be one of {ATTACKS}")
        self._attack = attack
        self._first: RoundReply | None = None

    def handle(self, request: RoundRequest) -> RoundReply:
        """Answer honestly, or with the first reply again."""
        reply = super().handle(request)
        if self._attack != REPLAY or not reply.arrays:
            return reply
        self._first = self._first or reply
        return self._first

    def _measure(
        self, request: RoundRequest, measurement: Measurement, table: EncodedTable
    ) -> dict[str, Tensor]:
        if self._attack != CLAIM:
            return super()._measure(request, measurement, table)
        multiplier = request.study.measure.noise_multiplier
        assert multiplier is not None
        claimed = 1e6 * measurement.sum(table)
        return {
            "moments": release_sum(
                claimed, max_norm=measurement.sensitivity, noise_multiplier=multiplier, noise=self._noise
            )
        }

    def _sign(self, request: RoundRequest, *rest: Any) -> RoundReply:
        *known, arrays = rest
        lie = LIES.get(self._attack)
        return super()._sign(request, *known, arrays if lie is None else lie(request, arrays))


def flip_labels(table: pd.DataFrame, label: str) -> pd.DataFrame:
    """The same patients with a label of two levels turned round."""
    levels = sorted(table[label].unique())
    if len(levels) != 2:
        raise ValueError(f"column {label!r} has {len(levels)} levels; two can be flipped")
    return table.assign(**{label: table[label].map(dict(zip(levels, reversed(levels), strict=True)))})
