"""What the peers' mechanisms share: the budget in concentrated differential privacy, marginals, a private choice.

Needs only numpy and scipy, so that it runs in the peers' own environments.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
from scipy.optimize import brentq, minimize_scalar
from scipy.special import softmax

Choice = TypeVar("Choice")


def concentrated_budget(epsilon: float, delta: float) -> float:
    """The largest rho whose concentrated differential privacy implies (epsilon, delta).

    The conversion of Canonne, Kamath and Steinke, "The Discrete Gaussian for Differential Privacy" (2020),
    proposition 7, as AIM and MST use it.
    """

    def log_delta(rho: float) -> float:
        def exponent(log_excess: float) -> float:
            alpha = 1 + np.exp(log_excess)
            moments = (alpha - 1) * (alpha * rho - epsilon)
            return float(moments + alpha * np.log1p(-1 / alpha) - np.log(alpha - 1))

        return float(minimize_scalar(exponent, bounds=(-5.0, 15.0), method="bounded").fun)

    return float(brentq(lambda rho: log_delta(rho) - np.log(delta), 1e-8, 10 * epsilon + 10))


def counts_of(codes: np.ndarray, domain: Mapping[str, int], columns: Sequence[str]) -> np.ndarray:
    """The exact counts of a marginal, flattened with the last column fastest."""
    names = list(domain)
    shape = [domain[name] for name in columns]
    cells = np.ravel_multi_index([codes[:, names.index(name)] for name in columns], shape)
    return np.bincount(cells, minlength=int(np.prod(shape))).astype(float)


def draw_exponentially(scores: Mapping[Choice, float], epsilon: float, sensitivity: float) -> Choice:
    """The exponential mechanism: a choice with probability proportional to exp(epsilon score / 2 sensitivity)."""
    choices = list(scores)
    chances = softmax(0.5 * epsilon / sensitivity * np.array([scores[choice] for choice in choices]))
    return choices[int(np.random.default_rng().choice(len(choices), p=chances))]


def read_table(folder: Path) -> tuple[np.ndarray, dict[str, int]]:
    """The rows as codes and each column's levels, as `peers.py` wrote them."""
    return np.load(folder / "codes.npy"), json.loads((folder / "columns.json").read_text())
