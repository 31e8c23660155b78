"""How good synthetic rows are: distance of marginals to held-out rows, and a classifier trained on them.

The same figures as prototypes/tabular_common.py, so that they compare: mean total variation distance over all
columns, all pairs and 60 triples (drawn with seed 0 after the pairs), and the AUC on real held-out rows of a
HistGradientBoostingClassifier (random_state 0) trained on the synthetic codes.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.metrics import roc_auc_score

MAX_TRIPLES = 60


def utility(
    synthetic: np.ndarray, test: np.ndarray, cardinalities: Sequence[int], label: int | None
) -> dict[str, float]:
    """The benchmark's figures.

    Args:
        synthetic: (N, K) codes.
        test: (M, K) codes of held-out rows.
        cardinalities: levels of each column.
        label: index of the column to predict (its last level against the others).
    """
    rng = np.random.default_rng(0)
    figures = {f"tvd{ways}": _mean_distance(synthetic, test, cardinalities, ways, rng) for ways in (1, 2, 3)}
    figures["auc"] = float("nan") if label is None else downstream_auc(synthetic, test, label)
    return figures


def downstream_auc(train: np.ndarray, test: np.ndarray, label: int) -> float:
    """AUC on `test` of gradient boosting trained on `train`; 0.5 when it cannot be trained."""
    top = test[:, label].max()
    target = train[:, label] == top
    if target.all() or not target.any():
        return 0.5
    model = HistGradientBoostingClassifier(random_state=0)
    model.fit(np.delete(train, label, 1), target)
    return float(roc_auc_score(test[:, label] == top, model.predict_proba(np.delete(test, label, 1))[:, 1]))


def _mean_distance(
    a: np.ndarray, b: np.ndarray, cardinalities: Sequence[int], ways: int, rng: np.random.Generator
) -> float:
    combinations = list(itertools.combinations(range(len(cardinalities)), ways))
    if ways == 3 and len(combinations) > MAX_TRIPLES:
        combinations = [combinations[i] for i in rng.choice(len(combinations), MAX_TRIPLES, replace=False)]
    distances = []
    for columns in combinations:
        shape = [cardinalities[column] for column in columns]
        tables = [
            np.bincount(np.ravel_multi_index(rows[:, columns].T, shape), minlength=int(np.prod(shape)))
            / len(rows)
            for rows in (a, b)
        ]
        distances.append(np.abs(tables[0] - tables[1]).sum() / 2)
    return float(np.mean(distances))
