"""Clipped gradient sums through Opacus' hooks: for layers that the book-keeping clip has no rule for."""

from __future__ import annotations

from typing import Any

import torch
from opacus import GradSampleModule
from torch import Tensor, nn

from privacy.bookkeeping import GradientSums, clip_factors
from privacy.module_checks import PerRecordLoss, UnsupportedModuleError, check_losses, refuse_batch_statistics


class OpacusHooksClip:
    """The same clipped sums through Opacus' per-sample gradients: any layer that Opacus knows, and slow."""

    def __init__(self, module: nn.Module, *, max_grad_norm: float) -> None:
        refuse_batch_statistics(module)
        self._module = module
        self._max_grad_norm = max_grad_norm
        self.parameters: list[Any] = [p for p in module.parameters() if p.requires_grad]
        if not self.parameters:
            raise UnsupportedModuleError("the module has no trainable parameter")

    def add_clipped_sum(self, records: Tensor, loss: PerRecordLoss, sums: GradientSums) -> None:
        """As `BookKeepingClip.add_clipped_sum`."""
        wrapped: Any = GradSampleModule(self._module, batch_first=True, loss_reduction="sum")
        try:
            with torch.enable_grad():
                losses = loss(wrapped(records))
                check_losses(losses, len(records))
                torch.autograd.backward(losses.sum())
            with torch.no_grad():
                samples = [p.grad_sample.flatten(1) for p in self.parameters]  # (B, numel) each
                norms = torch.stack([torch.linalg.vector_norm(s, dim=1) for s in samples]).norm(dim=0)
                factors = clip_factors(norms, self._max_grad_norm)
                keep = (factors > 0).unsqueeze(1)
                for p, s in zip(self.parameters, samples, strict=True):
                    sums.of[p] += (factors @ torch.where(keep, s, 0.0)).view_as(p)
        finally:
            for p in self.parameters:
                p.grad = None
            wrapped.to_standard_module()
