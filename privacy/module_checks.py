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
