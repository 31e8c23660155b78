"""The clipped sum of per-patient gradients from one forward and one backward pass.

One pass keeps what went into each layer and the signal that came back to its output (the books). From these the
layer rules give every patient's gradient norm, hence the clip factors, hence the clipped sum. No second backward
pass, and no memory for a gradient per patient and parameter in linear layers.

A layer without a rule is refused, in words: an automatic fall-back to Opacus' hooks would be 20 to 35 times slower
and nobody would know why. Who wants it says so: `DiscriminatorTrainer(..., clipping="opacus-hooks")`.

Formal guarantee: adding or removing one patient changes the result by at most `max_grad_norm` in L2, up to
floating-point rounding (docs/assurance/dpsgd.md); a patient whose numbers are NaN or Inf counts as zero.

References:
    Bu, Wang, Zha, Karypis, Differentially private optimization on large model at small cost, ICML 2023
    (arXiv:2210.00038).
"""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from privacy.layer_rules import RULES, Workspace
from privacy.module_checks import (
    PerRecordLoss,
    UnsupportedModuleError,
    check_losses,
    refuse_batch_statistics,
    refuse_options,
)

NORM_MARGIN = 4e-6  # relative room for rounding in float32 norms: the clip aims this much lower


class GradientSums:
    """One running sum per parameter, float64, in one flat vector.

    Attributes:
        flat: (N,), all parameters' sums one after another.
        of: each parameter's view of `flat`, in the parameter's shape.
    """

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        sizes = [p.numel() for p in parameters]
        self.flat = torch.zeros(sum(sizes), dtype=torch.float64, device=parameters[0].device)
        parts = torch.split(self.flat, sizes)
        self.of = {p: part.view_as(p) for p, part in zip(parameters, parts, strict=True)}


def clip_factors(norms: Tensor, max_grad_norm: float) -> Tensor:
    """Factors that bring gradients to an L2 norm of at most `max_grad_norm`; 0 for a norm that is no number.

    Args:
        norms: (B,). Sensitive: do not log.
        max_grad_norm: above 0.
    """
    factors = (max_grad_norm * (1 - NORM_MARGIN) / norms).clamp(max=1.0)
    return torch.where(torch.isfinite(norms), factors, 0.0)


class BookKeepingClip:
    """Clipped gradient sums of one module.

    Args:
        module: its parameters sit in Linear, Conv2d, GroupNorm, LayerNorm and Embedding layers, each called once
            per forward pass and sharing no parameter.
        max_grad_norm: the L2 bound per patient, above 0.

    Raises:
        UnsupportedModuleError: a layer mixes patients, has no rule, or shares a parameter.
    """

    def __init__(self, module: nn.Module, *, max_grad_norm: float) -> None:
        refuse_batch_statistics(module)
        self._module = module
        self._max_grad_norm = max_grad_norm
        self._layers = _learning_layers(module)
        self._space = Workspace()
        self.parameters: list[Tensor] = [p for p in module.parameters() if p.requires_grad]

    def add_clipped_sum(self, records: Tensor, loss: PerRecordLoss, sums: GradientSums) -> None:
        """Add the clipped gradients of all records to `sums`.

        Args:
            records: (B, ...), one per patient. Sensitive: do not log.
            loss: from the module's output to one loss per record, (B,).
            sums: of the module's parameters, added to in place.

        Raises:
            ValueError: the loss is not one number per record.
            UnsupportedModuleError: a layer ran twice, or never.
        """
        with _Books(self._layers) as books, torch.enable_grad():
            losses = loss(self._module(records))
        check_losses(losses, len(records))
        inputs, outputs = books.read()
        signals = torch.autograd.grad(losses.sum(), outputs)
        with torch.no_grad():
            parts = [
                RULES[type(layer)](layer, i, s, self._space)
                for layer, i, s in zip(self._layers, inputs, signals, strict=True)
            ]
            norms = torch.stack([part.squared_norms for part in parts]).sum(0).sqrt()  # (B,)
            factors = clip_factors(norms, self._max_grad_norm)
            for part in parts:
                for parameter, total in part.weighted_sum(factors):
                    sums.of[parameter] += total


def _learning_layers(module: nn.Module) -> list[nn.Module]:
    layers: list[nn.Module] = []
    seen: set[Tensor] = set()
    for name, layer in module.named_modules(remove_duplicate=False):
        own = [p for p in layer.parameters(recurse=False) if p.requires_grad]
        if not own:
            continue
        if type(layer) not in RULES:
            raise UnsupportedModuleError(
                f"{name or 'the module'} is a {type(layer).__name__} with parameters; the book-keeping clip has "
                f"rules for {', '.join(t.__name__ for t in RULES)}. Build it from those, or ask for the slow way: "
                'clipping="opacus-hooks"'
            )
        refuse_options(name, layer)
        if any(p in seen for p in own):
            raise UnsupportedModuleError(f"{name} shares a parameter with another layer; give it its own")
        seen.update(own)
        layers.append(layer)
    if not layers:
        raise UnsupportedModuleError("the module has no trainable parameter")
    return layers


class _Books:
    """Inputs and outputs of the layers during one forward pass."""

    def __init__(self, layers: list[nn.Module]) -> None:
        self._layers = layers
        self._entries: dict[nn.Module, tuple[Tensor, Tensor]] = {}
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> _Books:
        self._handles = [layer.register_forward_hook(self._enter) for layer in self._layers]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()

    def _enter(self, layer: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        if layer in self._entries:
            raise UnsupportedModuleError(
                f"a {type(layer).__name__} runs twice in one forward pass; give each use its own layer"
            )
        self._entries[layer] = (args[0].detach(), output)

    def read(self) -> tuple[list[Tensor], list[Tensor]]:
        missing = [type(layer).__name__ for layer in self._layers if layer not in self._entries]
        if missing:
            raise UnsupportedModuleError(
                f"these layers did not run in the forward pass: {', '.join(missing)}"
            )
        entries = [self._entries[layer] for layer in self._layers]
        return [entry[0] for entry in entries], [entry[1] for entry in entries]
