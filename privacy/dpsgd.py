"""DP-SGD for a site's discriminator: one step on patients against generated records.

One step draws patients by independent coins (Poisson sampling at a public rate), clips each patient's gradient,
adds the sum up, adds noise from the `NoiseSource`, adds the clipped gradient of the generated records (which are
post-processing of earlier releases and need no noise), and divides by a public number.

Formal guarantee: S steps cost one `subsampled_gaussian` event with this sample_rate and noise_multiplier and S
steps (`DiscriminatorTrainer.event`), unit one patient, neighbours by adding or removing one.

References:
    Abadi et al., Deep learning with differential privacy, CCS 2016.
    Bie, Kamath, Zhang, Private GANs, revisited, TMLR 2023: only the discriminator's real half needs noise.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Literal, Protocol

import torch
from opacus.optimizers import DPOptimizer
from torch import Tensor, nn

from privacy.bookkeeping import BookKeepingClip, GradientSums
from privacy.events import MechanismEvent
from privacy.mechanisms import public_grid
from privacy.module_checks import PerRecordLoss, refuse_mixing
from privacy.noise import NoiseSource
from privacy.opacus_hooks import OpacusHooksClip

Clipping = Literal["book-keeping", "opacus-hooks"]
CACHED_NUMBERS = (
    2**14
)  # float64 numbers worked on at once, so that several passes over them stay in the cache


class PatientRecords(Protocol):
    """Patients by number; whoever holds them picks one record per patient and draw."""

    @property
    def num_patients(self) -> int:
        """How many patients there are. Sensitive: do not log."""

    def gather(self, indices: Tensor) -> Tensor:
        """One record for each of the patients `indices` (b,): (b, ...)."""


def poisson_sample(num_patients: int, sample_rate: float, noise: NoiseSource) -> Tensor:
    """Draw each patient with probability `sample_rate`, independently, by the noise source's uniforms.

    Returns:
        int64 indices of those drawn, ascending, possibly none. Sensitive: do not log, not even how many.
    """
    return torch.nonzero(noise.uniform(num_patients) < sample_rate).squeeze(1)


class KeyedNoiseOptimizer(DPOptimizer):  # type: ignore[misc]
    """Opacus' optimiser with noise from a `NoiseSource`, a public divisor, and sums that are clipped already.

    `clip_and_accumulate` is what the trainer did before it calls `step`: `p.summed_grad` holds the clipped sum.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        *,
        noise_multiplier: float,
        max_grad_norm: float,
        divisor: float,
        noise: NoiseSource,
    ) -> None:
        super().__init__(
            optimizer,
            noise_multiplier=noise_multiplier,
            max_grad_norm=max_grad_norm,
            expected_batch_size=None,
            loss_reduction="sum",
        )
        self._divisor = divisor
        self._noise = noise
        self._sums: tuple[GradientSums, GradientSums] | None = None

    @property
    def grad_samples(self) -> list[Tensor]:
        """No per-patient gradients are kept; Opacus only asks whether there are parameters."""
        return list(self.params)

    def take(self, sums: GradientSums, free_sums: GradientSums) -> None:
        """Use these clipped sums in the next step.

        Args:
            sums: over patients; the noise is added to these.
            free_sums: over generated records, added after the noise.
        """
        self._sums = (sums, free_sums)
        for p in self.params:
            p.summed_grad = sums.of[p]

    def clip_and_accumulate(self) -> None:
        """Nothing left to do: `p.summed_grad` was filled by a clip that met every patient of the batch."""

    def add_noise(self) -> None:
        """p.grad = (clipped sum + noise, rounded to the public grid, + free sum) / divisor."""
        if self._sums is None:
            raise RuntimeError("no clipped sum to add noise to; hand it in with `take` before every step")
        (sums, free_sums), self._sums = self._sums, None
        scale = self.noise_multiplier * self.max_grad_norm
        grid = public_grid(scale)
        # In units of the grid, a power of two: exact, and it saves passes over all parameters.
        total = self._noise.normal((sums.flat.numel(),), scale=scale / grid).to(sums.flat.device)
        piece = CACHED_NUMBERS if total.device.type == "cpu" else len(total)
        for part, exact, free in zip(
            *(torch.split(t, piece) for t in (total, sums.flat, free_sums.flat)), strict=True
        ):
            part.add_(exact, alpha=1 / grid).round_()
            part.mul_(grid / self._divisor).add_(free, alpha=1 / self._divisor)
        parts = torch.split(total.to(next(iter(sums.of)).dtype), [view.numel() for view in sums.of.values()])
        for p, part in zip(sums.of, parts, strict=True):
            p.grad = part.view_as(p).to(p.dtype)

    def scale_grad(self) -> None:
        """Nothing: the divisor is public and already applied."""


class DiscriminatorTrainer:
    """Trains a discriminator with DP-SGD over patients.

    Privacy: unit is one patient with all records; `n` steps cost `event(n)`, whatever the records, the fakes
    and the losses are, as long as a loss treats every record by itself. Debit before you step.

    Args:
        module: no BatchNorm. Layers as `BookKeepingClip` has rules for, unless clipping is `opacus-hooks`.
        optimizer: over exactly the module's trainable parameters; its state is post-processing.
        sample_rate: public probability of each patient per step, in (0, 1].
        noise_multiplier: standard deviation of the noise over `max_grad_norm`, above 0.
        max_grad_norm: L2 bound on one patient's gradient, above 0.
        nominal_batch_size: public divisor of the summed gradient, above 0; never the number drawn.
        physical_batch_size: records per forward pass, at least 1; bounds memory and changes nothing else.
        noise: where coins and noise come from; `SystemNoise` on patients.
        clipping: `book-keeping` (fast) or `opacus-hooks` (any layer that Opacus knows, slow).
        authorised_steps: how many steps were debited; one more raises. None leaves the count to the caller.

    Raises:
        ValueError: a number is out of its range, or the optimiser holds other parameters.
        UnsupportedModuleError: the module cannot be trained under DP.
    """

    def __init__(
        self,
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        sample_rate: float,
        noise_multiplier: float,
        max_grad_norm: float,
        nominal_batch_size: float,
        physical_batch_size: int,
        noise: NoiseSource,
        clipping: Clipping = "book-keeping",
        authorised_steps: int | None = None,
    ) -> None:
        # The event's own checks are the parameters' checks.
        self._event = MechanismEvent(
            phase="refine",
            kind="subsampled_gaussian",
            noise_multiplier=noise_multiplier,
            sample_rate=sample_rate,
            max_grad_norm=max_grad_norm,
        )
        if not (math.isfinite(nominal_batch_size) and nominal_batch_size > 0):
            raise ValueError(
                f"nominal_batch_size is {nominal_batch_size!r}; it must be a public number above 0"
            )
        if physical_batch_size < 1:
            raise ValueError(f"physical_batch_size is {physical_batch_size!r}; it must be 1 or more")
        self.module = module
        self.noise = noise
        self.steps_taken = 0
        self._authorised_steps = authorised_steps
        self._physical_batch_size = physical_batch_size
        self._clip = _make_clip(module, clipping, max_grad_norm)
        held = {p for group in optimizer.param_groups for p in group["params"] if p.requires_grad}
        if held != set(self._clip.parameters):
            raise ValueError(
                "the optimizer's parameters are not the module's trainable ones; a gradient is clipped over all "
                "of them together, so build the optimizer from module.parameters()"
            )
        self._sums = GradientSums(self._clip.parameters)
        self._free_sums = GradientSums(self._clip.parameters)
        self._optimizer = KeyedNoiseOptimizer(
            optimizer,
            noise_multiplier=noise_multiplier,
            max_grad_norm=max_grad_norm,
            divisor=nominal_batch_size,
            noise=noise,
        )

    def event(self, steps: int) -> MechanismEvent:
        """What `steps` steps cost."""
        return MechanismEvent(
            phase=self._event.phase,
            kind=self._event.kind,
            noise_multiplier=self._event.noise_multiplier,
            sample_rate=self._event.sample_rate,
            max_grad_norm=self._event.max_grad_norm,
            steps=steps,
        )

    def step(
        self,
        records: Tensor | PatientRecords,
        fakes: Tensor,
        real_loss: PerRecordLoss,
        fake_loss: PerRecordLoss,
    ) -> None:
        """One DP-SGD step.

        Args:
            records: (P, ...), one row per patient, or a `PatientRecords`. Sensitive: do not log.
            fakes: (F, ...) generated records, any public number of them, none allowed.
            real_loss: from the module's output on patients to one loss per record, (B,).
            fake_loss: the same for generated records.

        Raises:
            ValueError: a loss is not one number per record.
            UnsupportedModuleError: the module or a loss mixes records.
            RuntimeError: more steps than `authorised_steps`.
        """
        if self._authorised_steps is not None and self.steps_taken >= self._authorised_steps:
            raise RuntimeError(
                f"{self._authorised_steps} steps were authorised and taken; debit more before taking another"
            )
        if self.steps_taken == 0:
            refuse_mixing(self.module, fakes, (real_loss, fake_loss))
        self.steps_taken += 1  # before anything is drawn: a step that breaks half-way counts
        self._optimizer.zero_grad(set_to_none=True)
        self._add_patients(records, real_loss)
        self._add_chunks(torch.split(fakes.detach(), self._physical_batch_size), fake_loss, self._free_sums)
        self._optimizer.take(self._sums, self._free_sums)
        self._optimizer.step()

    def clipped_patient_sum(self, records: Tensor | PatientRecords, real_loss: PerRecordLoss) -> Tensor:
        """The exact clipped gradient sum over a fresh Poisson sample: the noise-free half of `step`.

        Privacy: not a release. It changes by at most `max_grad_norm` when one patient joins or leaves.

        Returns:
            float64 (N,), all parameters one after another. Sensitive: do not log.
        """
        self._add_patients(records, real_loss)
        return self._sums.flat.clone()

    def _add_patients(self, records: Tensor | PatientRecords, real_loss: PerRecordLoss) -> None:
        num_patients = len(records) if isinstance(records, Tensor) else records.num_patients
        drawn = poisson_sample(num_patients, self._event.sample_rate, self.noise)
        chunks = torch.split(drawn, self._physical_batch_size)
        if isinstance(records, Tensor):
            table = records
            parts = (table.index_select(0, chunk.to(table.device)) for chunk in chunks)
        else:
            parts = (records.gather(chunk) for chunk in chunks)
        self._add_chunks(parts, real_loss, self._sums)

    def _add_chunks(self, chunks: Iterable[Tensor], loss: PerRecordLoss, sums: GradientSums) -> None:
        sums.flat.zero_()
        for chunk in chunks:
            if len(chunk):
                self._clip.add_clipped_sum(chunk, loss, sums)


def _make_clip(module: nn.Module, clipping: str, max_grad_norm: float) -> BookKeepingClip | OpacusHooksClip:
    if clipping == "book-keeping":
        return BookKeepingClip(module, max_grad_norm=max_grad_norm)
    if clipping == "opacus-hooks":
        return OpacusHooksClip(module, max_grad_norm=max_grad_norm)
    raise ValueError(f"clipping is {clipping!r}; it must be 'book-keeping' or 'opacus-hooks'")
