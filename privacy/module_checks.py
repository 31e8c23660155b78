"""What a module and a loss must be for a patient's gradient to be bounded: each record by itself."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

PerRecordLoss = Callable[[Tensor], Tensor]


class UnsupportedModuleError(TypeError):
    """The module cannot be trained under DP as it is."""


def refuse_batch_statistics(module: nn.Module) -> None:
    """Raise UnsupportedModuleError when a layer mixes the records of a batch."""
    for name, layer in module.named_modules():
        if isinstance(layer, _BatchNorm):
            raise UnsupportedModuleError(
                f"{name or 'the module'} is a {type(layer).__name__}: it mixes the patients of a batch, so no "
                "patient's gradient can be bounded; use GroupNorm or LayerNorm"
            )


def refuse_options(name: str, layer: nn.Module) -> None:
    """Raise UnsupportedModuleError when a layer is set up in a way that the layer rules do not cover."""
    if isinstance(layer, nn.Conv2d) and (isinstance(layer.padding, str) or layer.padding_mode != "zeros"):
        raise UnsupportedModuleError(
            f"{name} has padding {layer.padding!r}, mode {layer.padding_mode!r}; give zero padding in numbers"
        )
    if isinstance(layer, nn.Embedding) and (
        layer.max_norm is not None or layer.scale_grad_by_freq or layer.sparse
    ):
        raise UnsupportedModuleError(
            f"{name} has max_norm, scale_grad_by_freq or sparse set: these change weights by who is in the batch, or "
            "scale one patient by the others; leave them off"
        )


def check_losses(losses: Tensor, num_records: int) -> None:
    """Raise ValueError unless there is one loss per record."""
    if losses.shape != (num_records,):
        raise ValueError(
            f"the loss has shape {tuple(losses.shape)}; it must give one loss per record, shape (B,), neither "
            "averaged nor summed: a mean divides by how many patients were drawn, which is secret"
        )


def refuse_mixing(module: nn.Module, fakes: Tensor, losses: Iterable[PerRecordLoss]) -> None:
    """Raise UnsupportedModuleError when one record's loss depends on another, tried on two generated records."""
    pair = fakes[:2].detach().clone()
    if len(pair) < 2:
        return
    if pair.is_floating_point():  # the structure is asked about, not what extreme numbers do to it
        pair = pair.nan_to_num_(0.5, 1.0, -1.0).clamp_(-10, 10)
    with torch.enable_grad():
        output = module(pair.requires_grad_() if pair.is_floating_point() else pair)
        for loss in losses:
            values = loss(output)
            check_losses(values, 2)
            through = [t for t in (output, pair) if t.requires_grad]
            for signal in torch.autograd.grad(values[0], through, retain_graph=True, allow_unused=True):
                if signal is not None and bool((signal[1] != 0).any()):
                    raise UnsupportedModuleError(
                        "the loss of one record depends on another record of the batch, so no patient's gradient "
                        "can be bounded; use no layer or loss that mixes records"
                    )
