"""What the fit of a mixture minimises, with its gradient, in a few matrix products.

The same as `Anchor.loss` plus a penalty on the mutual information between the component and each column, for
components of equal weights. Written out instead of differentiated by machine, each table of pairs is looked at once, in
blocks that stay in the processor's cache, and only on one side of its diagonal: half the products, and none of the
passes over whole tables that a step spent most of its time on.
"""

from __future__ import annotations

import torch
from torch import Tensor

from models.anchor import Anchor
from models.table import column_blocks


class MixtureObjective:
    """The penalised likelihood of noisy frequencies as a function of the components' logits.

    With X the components' distributions less their columns' centre, a table of pairs is X diag(s) X' for s the
    components' weights (times a contrast of their labels), its residual R that less what was measured, and its share of
    the loss the sum of squares of sqrt(v) * R over one side of the diagonal, v the precisions. The gradient in X is
    then 2 diag(s) X G, with G = v * R on both sides, and that in s half the row sums of X * 2 X G.

    Args:
        anchor: the noisy frequencies.
        shrinkage: weight of the mutual information (nats, summed over columns), 0 or more.
        label_weight: of columns and pairs with the label.
        unit: factor of the whole.
    """

    def __init__(
        self, anchor: Anchor, *, shrinkage: float, label_weight: float = 1.0, unit: float = 1.0
    ) -> None:
        layout, found = anchor.layout, anchor.frequencies
        self._cardinalities, self._shrinkage, self._unit = layout.cardinalities, shrinkage, unit
        self._centre = layout.centre.float()[:, None]  # (D, 1)
        self._label, self._contrasts = anchor.label_places, layout.contrasts.float()
        singles, pairs, triples = anchor.weights
        label = torch.ones(layout.width)
        label[self._label] = label_weight
        self._singles, self._one_way = (singles * label)[:, None], found.one_way.float()[:, None]
        self._blocks = column_blocks(layout.cardinalities)
        # No two places of the label stand for a pair, so that one factor is left of the two.
        weighted = [(found.interactions, pairs * layout.between * label[:, None] * label)]
        weighted += [(table, triples * layout.between_others) for table in found.label_interactions]
        self._tables = [self._one_side(table.float(), weight) for table, weight in weighted]

    def _one_side(self, measured: Tensor, weight: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Of each block of rows the part from the diagonal on: sqrt(v), and -sqrt(v) times what was measured."""
        parts = []
        for start, end in self._blocks:
            root = weight[start:end, start:].clone()
            root[:, : end - start] /= 2  # both sides of the diagonal lie in here
            root.sqrt_()
            parts.append((root, -root * measured[start:end, start:]))
        return parts

    def __call__(self, logits: Tensor) -> tuple[float, Tensor]:
        """The value and its gradient.

        Args:
            logits: (D, C) float32, a component in each column: the transpose of a generator's.

        Returns:
            The value, and (D, C) float32.
        """
        weight = 1 / logits.shape[1]
        logs = torch.cat([part.log_softmax(0) for part in logits.split(self._cardinalities)])
        P = logs.exp()  # (D, C)
        X = P - self._centre
        mean = P.mean(1, keepdim=True)  # (D, 1)
        off = mean - self._one_way
        value = torch.dot(off.flatten(), (self._singles * off).flatten())
        gradient = (2 * weight * self._singles * off).expand_as(P).clone()  # in P
        if self._shrinkage:
            told = logs - mean.clamp_min(1e-12).log()
            value = value + self._shrinkage * weight * torch.dot(P.flatten(), told.flatten())
            gradient.add_(told, alpha=self._shrinkage * weight)
        for number, parts in enumerate(self._tables):
            if number == 0:
                squares, sloped = self._pairs(X, X * weight, parts)
                gradient.add_(sloped, alpha=weight)
            else:
                contrast = self._contrasts[number - 1]
                signed = weight * (contrast @ P[self._label])  # (C,)
                squares, sloped = self._pairs(X, X * signed, parts)
                gradient.addcmul_(sloped, signed.expand_as(sloped))
                gradient[self._label] += contrast[:, None] * (weight / 2 * (X * sloped).sum(0))
            value = value + squares
        gradient.mul_(P)
        for slope, part in zip(
            gradient.split(self._cardinalities), P.split(self._cardinalities), strict=True
        ):
            slope.sub_(part * slope.sum(0))
        return float(value) * self._unit, gradient.mul_(self._unit)

    def _pairs(
        self, X: Tensor, weighted: Tensor, parts: list[tuple[Tensor, Tensor]]
    ) -> tuple[Tensor, Tensor]:
        """A table's share of the loss, and 2 G X."""
        squares, sloped = torch.zeros(()), torch.zeros_like(X)
        for (start, end), (root, less) in zip(self._blocks, parts, strict=True):
            residual = (X[start:end] @ weighted[start:].T).mul_(root).add_(less)
            squares = squares + torch.dot(residual.flatten(), residual.flatten())
            own, others = residual.mul_(root).split((end - start, len(X) - end), 1)
            sloped[start:end].addmm_(own, X[start:end], alpha=4)
            if end < len(X):
                sloped[start:end].addmm_(others, X[end:], alpha=2)
                sloped[end:].addmm_(others.T, X[start:end], alpha=2)
        return squares, sloped
