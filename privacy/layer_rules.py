"""How much one patient's gradient weighs in a layer, and the clipped sum over patients, without autograd.

The gradient of a layer's parameters for patient i depends only on what went into the layer and on the signal that
came back to its output. A rule takes both for the whole batch and gives a `LayerPart`: first the squared L2 norms
of all patients' gradients, and later, once all layers' norms have made the clip factors, the weighted sum.

Linear layers never form a patient's gradient: of an outer product the norm is the product of the norms. Where a
patient's gradient sums over positions (sequences, pixels) it is formed, so that norm and sum see the very same
rounding; the cheaper norm from Gram matrices loses digits when positions cancel, and with them the clip.

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
CHUNK_BYTES = 2 * 2**20  # patches are copied out for as many patients at once as stay in the cache


class Workspace:
    """Buffers that live from step to step: fresh memory would cost more than the arithmetic done in it."""

    def __init__(self) -> None:
        self._buffers: dict[object, Tensor] = {}

    def take(self, key: object, shape: tuple[int, ...], like: Tensor) -> Tensor:
        """A tensor of this shape, valid until the key is taken again; zeros at first, later what was left."""
        size = torch.Size(shape).numel()
        buffer = self._buffers.get(key)
        if (
            buffer is None
            or buffer.numel() < size
            or buffer.dtype != like.dtype
            or buffer.device != like.device
        ):
            buffer = self._buffers[key] = like.new_zeros(size)
        return buffer[:size].view(shape)


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


Rule = Callable[..., LayerPart]


def linear(layer: nn.Linear, inputs: Tensor, signals: Tensor, space: Workspace) -> LayerPart:
    """Linear on (B, I), or on (B, ..., I) with positions between."""
    if inputs.ndim != 2:
        return _linear_over_positions(layer, inputs.flatten(1, -2), signals.flatten(1, -2), space)
    norms = _squares(signals) * (_squares(inputs) * _learns(layer.weight) + _learns(layer.bias))

    def weighted_sum(factors: Tensor) -> Sums:
        # A factor of 0 makes a patient's finite numbers 0; what is left of NaN and Inf is made 0 here.
        weighed = (signals * factors.unsqueeze(1)).nan_to_num_(0.0, 0.0, 0.0)  # (B, O)
        return _trainable(
            (layer.weight, lambda: weighed.t() @ inputs.nan_to_num(0.0, 0.0, 0.0)),
            (layer.bias, lambda: weighed.sum(0)),
        )

    return LayerPart(squared_norms=norms, weighted_sum=weighted_sum)


def _linear_over_positions(layer: nn.Linear, inputs: Tensor, signals: Tensor, space: Workspace) -> LayerPart:
    a, g, flags = _sane(inputs, signals)  # (B, T, I), (B, T, O)

    def form() -> Tensor:
        out = space.take((layer, "formed"), (len(a), *layer.weight.shape), a)
        return torch.bmm(g.transpose(1, 2), a, out=out)

    return _formed(_trainable((layer.weight, form), (layer.bias, lambda: g.sum(1))), flags)


def conv2d(layer: nn.Conv2d, inputs: Tensor, signals: Tensor, space: Workspace) -> LayerPart:
    """Conv2d with any stride, dilation, groups, and zero padding in numbers."""
    if layer.groups > 1:
        return _conv2d_grouped(layer, inputs, signals)
    keep, flags = _sound_rows(inputs, signals)
    g = _keep(signals, keep).flatten(2)  # (B, O, T)
    return _formed(
        _trainable(
            (layer.weight, lambda: _form_conv2d(layer, inputs, keep, g, signals.shape[2:], space)),
            (layer.bias, lambda: g.sum(2)),
        ),
        flags,
        channels_last=layer.weight,
    )


def _form_conv2d(
    layer: nn.Conv2d, inputs: Tensor, keep: Tensor, g: Tensor, spots: torch.Size, space: Workspace
) -> Tensor:
    """Per-patient weight gradients, (B, O, kh, kw, I): channels last, so that patches are long runs."""
    (kh, kw), (dh, dw), (sh, sw) = layer.kernel_size, layer.dilation, layer.stride
    ph, pw = int(layer.padding[0]), int(layer.padding[1])
    batch, channels, height, width = inputs.shape
    # The rim is zero from the start and only the inside is ever written.
    shape = (batch, height + 2 * ph, width + 2 * pw, channels)
    padded = space.take((layer, "padded", shape[1:]), shape, inputs)
    inside = padded[:, ph : ph + height, pw : pw + width]
    torch.mul(inputs.permute(0, 2, 3, 1), keep.view(-1, 1, 1, 1), out=inside).nan_to_num_(0.0, 0.0, 0.0)
    b, h, w, c = padded.stride()
    patches = padded.as_strided((batch, *spots, kh, kw, channels), (b, h * sh, w * sw, h * dh, w * dw, c))
    positions, columns = spots.numel(), kh * kw * channels
    chunk = max(1, CHUNK_BYTES // (positions * columns * inputs.element_size()))
    formed = space.take((layer, "formed"), (batch, layer.out_channels, columns), inputs)
    copied = space.take((layer, "patches"), (chunk, *patches.shape[1:]), inputs)
    for start in range(0, batch, chunk):
        part = copied[: min(chunk, batch - start)]
        part.copy_(patches[start : start + chunk])
        flat = part.view(len(part), positions, columns)
        torch.bmm(g[start : start + chunk], flat, out=formed[start : start + chunk])
    return formed.view(batch, layer.out_channels, kh, kw, channels)


def _conv2d_grouped(layer: nn.Conv2d, inputs: Tensor, signals: Tensor) -> LayerPart:
    inputs, signals, flags = _sane(inputs, signals)
    batch, groups = len(inputs), layer.groups
    padding = (int(layer.padding[0]), int(layer.padding[1]))
    columns = functional.unfold(inputs, layer.kernel_size, layer.dilation, padding, layer.stride)
    a = columns.reshape(batch * groups, -1, columns.shape[-1])
    g = signals.reshape(batch * groups, layer.out_channels // groups, -1)
    return _formed(
        _trainable(
            (layer.weight, lambda: torch.bmm(g, a.transpose(1, 2)).reshape(batch, *layer.weight.shape)),
            (layer.bias, lambda: signals.flatten(2).sum(2)),
        ),
        flags,
    )


def group_norm(layer: nn.GroupNorm, inputs: Tensor, signals: Tensor, space: Workspace) -> LayerPart:
    """GroupNorm on (B, C, ...)."""
    a, g, flags = _sane(inputs, signals)
    normal = functional.group_norm(a, layer.num_groups, eps=layer.eps)
    return _formed(
        _trainable(
            (layer.weight, lambda: (normal * g).reshape(*g.shape[:2], -1).sum(2)),
            (layer.bias, lambda: g.reshape(*g.shape[:2], -1).sum(2)),
        ),
        flags,
    )


def layer_norm(layer: nn.LayerNorm, inputs: Tensor, signals: Tensor, space: Workspace) -> LayerPart:
    """LayerNorm over the last dimensions of (B, ...)."""
    a, g, flags = _sane(inputs, signals)
    normal = functional.layer_norm(a, layer.normalized_shape, eps=layer.eps)
    shape = (len(a), -1, *layer.normalized_shape)
    return _formed(
        _trainable(
            (layer.weight, lambda: (normal * g).reshape(shape).sum(1)),
            (layer.bias, lambda: g.reshape(shape).sum(1)),
        ),
        flags,
    )


def embedding(layer: nn.Embedding, inputs: Tensor, signals: Tensor, space: Workspace) -> LayerPart:
    """Embedding of (B, ...) codes."""
    codes = inputs.reshape(len(inputs), -1)  # (B, T)
    _, g, flags = _sane(signals, signals.reshape(len(codes), codes.shape[1], -1))  # (B, T, D)
    if layer.padding_idx is not None:
        g = g * (codes != layer.padding_idx).unsqueeze(-1)
    # The gradient of a code is the sum over the positions that hold it; every such sum appears once per position.
    same = (codes.unsqueeze(1) == codes.unsqueeze(2)).to(g.dtype)  # (B, T, T)
    sums = torch.bmm(same, g)  # (B, T, D)
    norms = (sums.square().sum(2) / same.sum(2)).sum(1) + flags

    def weighted_sum(factors: Tensor) -> Sums:
        weighed = (g * factors.view(-1, 1, 1)).flatten(0, 1)
        return [(layer.weight, torch.zeros_like(layer.weight).index_add_(0, codes.flatten(), weighed))]

    return LayerPart(squared_norms=norms, weighted_sum=weighted_sum)


def _squares(values: Tensor) -> Tensor:
    """Sum of squares per row, (B,)."""
    norms: Tensor = torch.linalg.vector_norm(values.flatten(1), dim=1)
    return norms.square()


def _sane(inputs: Tensor, signals: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Both with unsound rows zeroed, and the flags of `_sound_rows`."""
    keep, flags = _sound_rows(inputs, signals)
    return _keep(inputs, keep), _keep(signals, keep), flags


def _sound_rows(inputs: Tensor, signals: Tensor) -> tuple[Tensor, Tensor]:
    """Which rows are neither NaN nor Inf nor so large that products overflow. Nothing branches on how many.

    Returns:
        keep (B,): 1, or 0 for an unsound row; flags (B,): 0, or NaN for an unsound row.
    """
    product = _squares(inputs) * _squares(signals)
    return torch.isfinite(product).to(inputs.dtype), product * 0.0  # NaN * 0 and Inf * 0 are NaN


def _keep(values: Tensor, keep: Tensor) -> Tensor:
    return (values * keep.view(-1, *[1] * (values.ndim - 1))).nan_to_num_(0.0, 0.0, 0.0)


def _formed(gradients: Sums, flags: Tensor, *, channels_last: Tensor | None = None) -> LayerPart:
    """The part of a layer whose per-patient gradients have been formed: (parameter, (B, *shape)), all finite.

    For the parameter `channels_last` the shape is (B, O, kh, kw, I).
    """
    norms = flags + torch.stack([_squares(per_patient) for _, per_patient in gradients]).sum(0)

    def weighted_sum(factors: Tensor) -> Sums:
        sums: Sums = []
        for parameter, per_patient in gradients:
            total = (factors @ per_patient.flatten(1)).view(per_patient.shape[1:])
            sums.append((parameter, total.permute(0, 3, 1, 2) if parameter is channels_last else total))
        return sums

    return LayerPart(squared_norms=norms, weighted_sum=weighted_sum)


def _learns(parameter: Tensor | None) -> float:
    return float(parameter is not None and parameter.requires_grad)


def _trainable(*pairs: tuple[Tensor | None, Callable[[], Tensor]]) -> Sums:
    return [(p, make()) for p, make in pairs if p is not None and p.requires_grad]


RULES: dict[type[nn.Module], Rule] = {
    nn.Linear: linear,
    nn.Conv2d: conv2d,
    nn.GroupNorm: group_norm,
    nn.LayerNorm: layer_norm,
    nn.Embedding: embedding,
}
