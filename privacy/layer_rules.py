"""How much one patient's gradient weighs in a layer, and the clipped sum over patients, without autograd.

The gradient of a layer's parameters for patient i depends only on what went into the layer and on the signal that
came back to its output. A rule takes both for the whole batch and gives a `LayerPart`: first the squared L2 norms
of all patients' gradients, and later, once all layers' norms have made the clip factors, the weighted sum.

Linear layers never form a patient's gradient: of an outer product the norm is the product of the norms. Where a
patient's gradient sums over positions (sequences, pixels) it is formed, so that norm and sum see the same rounding.

References:
    Goodfellow, Efficient per-example gradient computations, 2015 (arXiv:1510.01799).
    Bu, Wang, Zha, Karypis, Differentially private optimization on large model at small cost, ICML 2023
    (arXiv:2210.00038), sections 2 and 3.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

Sums = list[tuple[Tensor, Tensor]]  # a parameter and what belongs to it


@dataclass(frozen=True, kw_only=True)
class LayerPart:
    """One layer's share in every patient's gradient.

    Attributes:
        squared_norms: (B,), the squared L2 norm of each patient's gradient in this layer; NaN or Inf where a
            patient's numbers are. Sensitive: do not log.
        weighted_sum: takes factors (B,), 0 for patients to leave out, and gives each parameter's sum.
    """

    squared_norms: Tensor
    weighted_sum: Callable[[Tensor], Sums]


def _weigh(values: Tensor, factors: Tensor) -> Tensor:
    """Rows times factors, where a factor of 0 wins over NaN and Inf."""
    shaped = factors.reshape(-1, *[1] * (values.ndim - 1))
    return torch.where(shaped > 0, values * shaped, 0.0)


def _drop(values: Tensor, factors: Tensor) -> Tensor:
    """Rows as they are, except that a factor of 0 makes a row 0."""
    return torch.where(factors.reshape(-1, *[1] * (values.ndim - 1)) > 0, values, 0.0)


def _squares(values: Tensor) -> Tensor:
    """Sum of squares per row, (B,)."""
    norms: Tensor = torch.linalg.vector_norm(values.flatten(1), dim=1)
    return norms.square()


def _formed(gradients: Sums) -> LayerPart:
    """The part of a layer whose per-patient gradients have been formed: (parameter, (B, *shape))."""
    norms = torch.stack([_squares(per_patient) for _, per_patient in gradients]).sum(0)

    def weighted_sum(factors: Tensor) -> Sums:
        return [
            (parameter, (factors @ _drop(per_patient, factors).flatten(1)).reshape(parameter.shape))
            for parameter, per_patient in gradients
        ]

    return LayerPart(squared_norms=norms, weighted_sum=weighted_sum)


def _trainable(*pairs: tuple[Tensor | None, Callable[[], Tensor]]) -> Sums:
    return [(p, make()) for p, make in pairs if p is not None and p.requires_grad]


def linear(layer: nn.Linear, inputs: Tensor, signals: Tensor) -> LayerPart:
    """Linear on (B, I), or on (B, ..., I) with positions between."""
    if inputs.ndim != 2:
        a, g = inputs.flatten(1, -2), signals.flatten(1, -2)  # (B, T, I), (B, T, O)
        return _formed(
            _trainable(
                (layer.weight, lambda: torch.bmm(g.transpose(1, 2), a)), (layer.bias, lambda: g.sum(1))
            )
        )
    learns = [p is not None and p.requires_grad for p in (layer.weight, layer.bias)]
    signal_squares = _squares(signals)
    norms = signal_squares * (_squares(inputs) * learns[0] + float(learns[1]))

    def weighted_sum(factors: Tensor) -> Sums:
        weighed = _weigh(signals, factors)  # (B, O)
        return _trainable(
            (layer.weight, lambda: weighed.t() @ _drop(inputs, factors)), (layer.bias, lambda: weighed.sum(0))
        )

    return LayerPart(squared_norms=norms, weighted_sum=weighted_sum)


def conv2d(layer: nn.Conv2d, inputs: Tensor, signals: Tensor) -> LayerPart:
    """Conv2d with any stride, zero padding, dilation and groups."""
    batch, groups = len(inputs), layer.groups
    padding = layer.padding
    if isinstance(padding, str):
        raise TypeError(f"padding is {padding!r}; give a Conv2d its padding in numbers")
    columns = functional.unfold(
        inputs, layer.kernel_size, layer.dilation, padding, layer.stride
    )  # (B, I*K, L)
    a = columns.reshape(batch * groups, -1, columns.shape[-1])
    g = signals.reshape(batch * groups, layer.out_channels // groups, -1)
    return _formed(
        _trainable(
            (
                layer.weight,
                lambda: torch.bmm(g, a.transpose(1, 2)).reshape(batch, *layer.weight.shape),
            ),
            (layer.bias, lambda: signals.flatten(2).sum(2)),
        )
    )


def group_norm(layer: nn.GroupNorm, inputs: Tensor, signals: Tensor) -> LayerPart:
    """GroupNorm on (B, C, ...)."""
    normal = functional.group_norm(inputs, layer.num_groups, eps=layer.eps)
    return _formed(
        _trainable(
            (layer.weight, lambda: (normal * signals).reshape(*signals.shape[:2], -1).sum(2)),
            (layer.bias, lambda: signals.reshape(*signals.shape[:2], -1).sum(2)),
        )
    )


def layer_norm(layer: nn.LayerNorm, inputs: Tensor, signals: Tensor) -> LayerPart:
    """LayerNorm over the last dimensions of (B, ...)."""
    normal = functional.layer_norm(inputs, layer.normalized_shape, eps=layer.eps)
    shape = (len(inputs), -1, *layer.normalized_shape)
    return _formed(
        _trainable(
            (layer.weight, lambda: (normal * signals).reshape(shape).sum(1)),
            (layer.bias, lambda: signals.reshape(shape).sum(1)),
        )
    )


def embedding(layer: nn.Embedding, inputs: Tensor, signals: Tensor) -> LayerPart:
    """Embedding of (B, ...) codes."""
    codes = inputs.flatten(1)  # (B, T)
    g = signals.flatten(1, -2)  # (B, T, D)
    if layer.padding_idx is not None:
        g = torch.where((codes == layer.padding_idx).unsqueeze(-1), 0.0, g)
    # Two positions meet in the gradient where they hold the same code.
    same = (codes.unsqueeze(1) == codes.unsqueeze(2)).to(g.dtype)  # (B, T, T)
    norms = (torch.bmm(same, g) * g).flatten(1).sum(1)

    def weighted_sum(factors: Tensor) -> Sums:
        total = torch.zeros_like(layer.weight).index_add_(
            0, codes.flatten(), _weigh(g, factors).flatten(0, 1)
        )
        return [(layer.weight, total)]

    return LayerPart(squared_norms=norms, weighted_sum=weighted_sum)


Rule = Callable[..., LayerPart]
RULES: dict[type[nn.Module], Rule] = {
    nn.Linear: linear,
    nn.Conv2d: conv2d,
    nn.GroupNorm: group_norm,
    nn.LayerNorm: layer_norm,
    nn.Embedding: embedding,
}
