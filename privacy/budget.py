"""Budgets and spends: the two numbers (epsilon, delta) that everything here is about."""

from __future__ import annotations

import math
from dataclasses import dataclass


class BudgetExceededError(Exception):
    """A planned spend would go beyond a cap. Nothing was spent."""


def check_epsilon(value: float, *, name: str = "epsilon") -> None:
    """Raise ValueError unless `value` is a finite, positive epsilon."""
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name} is {value!r}; it must be a finite number above 0")


def check_delta(value: float, *, name: str = "delta") -> None:
    """Raise ValueError unless `value` lies in (0, 1)."""
    if not 0 < value < 1:
        raise ValueError(
            f"{name} is {value!r}; it must lie strictly between 0 and 1, usually below 1/patients"
        )


@dataclass(frozen=True, kw_only=True)
class PrivacyBudget:
    """A cap on what may be spent, per patient of one site.

    Privacy: unit is one patient with all records and images; neighbours differ by adding or removing one.

    Attributes:
        epsilon: cap, above 0.
        delta: in (0, 1).
    """

    epsilon: float
    delta: float

    def __post_init__(self) -> None:
        check_epsilon(self.epsilon)
        check_delta(self.delta)


@dataclass(frozen=True, kw_only=True)
class PrivacySpend:
    """What a list of mechanism events costs at a given delta.

    Attributes:
        epsilon: as recorded, by Opacus' PRV accountant (an upper bound); 0 for no events.
        delta: the delta it holds at.
        epsilon_pld: the same by dp-accounting's PLD, an independent implementation.
    """

    epsilon: float
    delta: float
    epsilon_pld: float

    def __post_init__(self) -> None:
        check_delta(self.delta)
        for name in ("epsilon", "epsilon_pld"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name} is {value!r}; a spend is a finite number, 0 or more")
