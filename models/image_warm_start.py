"""Fit the image generator to the summed noisy image moments. Post-processing: no budget, as many steps as it takes.

The loss is the squared distance between generated and measured means of the features, summed over categories and
weighted by what the noise leaves of each; where the sites measured several times, added up over the looks that they
took. A batch estimates its gradient without bias: the distance is taken between
the measured means and a moving average of the *earlier* batches' means, so that no image is compared with itself and
the average over many batches, not one batch, says where the generator is off.

References:
    Li, Swersky, Zemel: Generative Moment Matching Networks, ICML 2015.
    Dos Santos, Mroueh, Padhi, Dognin: Learning Implicit Generative Models by Matching Perceptual Features (moving
    averages of the means), ICCV 2019.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from models.image_features import fastest_device
from models.image_generator import ImageGenerator
from models.image_schema import ImageFitSettings
from models.image_targets import ImageTargets

Progress = Callable[[float], None]
JointCodes = Callable[[int, torch.Generator], Tensor]

POOL_ROWS = 20_000
MEMORY = (0.93, 0.99)  # of the moving average of the means, at the start and at the end
WEIGHT_MEMORY = 0.998  # of the moving average of the generator's weights
LATER_RATE = 0.5  # of the learning rate, where a fit goes on from an earlier one
SETTLING_BATCHES = 50  # that the released running statistics are averaged over


def fit_images(
    looks: Sequence[ImageTargets],
    *,
    settings: ImageFitSettings,
    joint_codes: JointCodes,
    start: ImageGenerator | None = None,
    steps: int | None = None,
    progress: Progress | None = None,
    seed: int = 0,
    device: torch.device | None = None,
) -> ImageGenerator:
    """Fit a generator to what the sites measured of their images.

    Privacy: post-processing of what the sites released; costs nothing.

    Args:
        looks: what each exchange found, at least one.
        settings: of the fit.
        joint_codes: draws (n, columns) categories of the conditioned columns from the fitted table generator.
        start: the generator to go on from; a new one if None.
        steps: of the optimiser; the settings' if None.
        progress: called with the done part, from 0 to 1.
        seed: of first weights and batches.
        device: where to compute; `fastest_device` if None.
    """
    device = device or fastest_device()
    layout, source = looks[0].layout, torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        generator = copy.deepcopy(start) or ImageGenerator(
            layout.image, layout.cardinalities, latent=settings.latent, width=settings.width
        )
    generator.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    changes: dict[str, float] = {} if steps is None else {"steps": steps}
    if start is not None:
        changes["learning_rate"] = settings.learning_rate * LATER_RATE
    batches = CodeBatches(joint_codes(POOL_ROWS, source), looks, settings.batch_size)
    fit = MomentFit(generator, looks, settings.model_copy(update=changes))
    for step in range(fit.settings.steps):
        fit.step(batches.draw(source), source)
        if progress:
            progress((step + 1) / fit.settings.steps)
    return fit.released(batches, source)


class CodeBatches:
    """Rows to draw pictures for: each conditioned column in turn gets its categories in equal numbers.

    A category's rows come from the table's generator under that category, so their other columns are as in the
    table and the features' mean over them is what was measured.
    """

    def __init__(self, pool: Tensor, looks: Sequence[ImageTargets], batch_size: int) -> None:
        self.pool = pool
        usable = [sum(column) for column in zip(*(look.weights for look in looks), strict=True)]
        self._rows = [
            {
                c: (pool[:, column] == c).nonzero().squeeze(1)
                for c in range(len(weights))
                if weights[c] > 0 and bool((pool[:, column] == c).any())
            }
            for column, weights in enumerate(usable)
        ]
        self._share = max(1, batch_size // max(1, sum(len(rows) for rows in self._rows)))

    def draw(self, source: torch.Generator) -> tuple[Tensor, Tensor]:
        """Codes (B, columns), and for which column each row is there (B,)."""
        picked, places = [], []
        for column, rows in enumerate(self._rows):
            for members in rows.values():
                picked.append(members[torch.randint(len(members), (self._share,), generator=source)])
                places.append(torch.full((self._share,), column))
        return self.pool[torch.cat(picked)], torch.cat(places)


class MomentFit:
    """The state of a fit: generator, optimiser, moving averages."""

    def __init__(
        self, generator: ImageGenerator, looks: Sequence[ImageTargets], settings: ImageFitSettings
    ) -> None:
        self.generator, self.settings = generator, settings
        self.averaged = copy.deepcopy(generator)
        self._device = generator.start.weight.device
        self._looks = [_LookAverages(look, self._device) for look in looks]
        self._offsets = torch.tensor([0, *generator.cardinalities]).cumsum(0)[:-1]
        self._optimizer = torch.optim.Adam(generator.parameters(), settings.learning_rate, betas=(0.5, 0.99))
        self._step = 0

    def step(self, batch: tuple[Tensor, Tensor], source: torch.Generator) -> None:
        """One step of the generator."""
        codes, places = batch
        done = self._step / self.settings.steps
        self._optimizer.param_groups[0]["lr"] = (
            self.settings.learning_rate * 0.5 * (1 + math.cos(math.pi * done))
        )
        cells = codes.gather(1, places[:, None]).squeeze(1) + self._offsets[places]
        counts = torch.bincount(cells, minlength=sum(self.generator.cardinalities)).float().to(self._device)
        cells = cells.to(self._device)
        memory = MEMORY[0] + (MEMORY[1] - MEMORY[0]) * done
        self.generator.train()
        with torch.autocast(self._device.type, torch.bfloat16):
            images = self.generator.images(codes, source)
            losses = [look.loss(images, cells, counts, memory) for look in self._looks]
        if self._step:  # the first has no earlier batch to say what is off
            self._optimizer.zero_grad(set_to_none=True)
            torch.stack(losses).sum().backward()  # type: ignore[no-untyped-call]
            self._optimizer.step()
        self._step += 1
        with torch.no_grad():
            kept = min(WEIGHT_MEMORY, self._step / (self._step + 10))
            for mean, weight in zip(self.averaged.parameters(), self.generator.parameters(), strict=True):
                mean.lerp_(weight, 1 - kept)

    @torch.no_grad()
    def released(self, batches: CodeBatches, source: torch.Generator) -> ImageGenerator:
        """The averaged weights, with running statistics of their own pictures."""
        self.averaged.train()
        for norm in self.averaged.norms:
            assert isinstance(norm, nn.BatchNorm2d)
            norm.reset_running_stats()
            norm.momentum = None  # the plain mean over batches
        for _ in range(SETTLING_BATCHES):
            self.averaged.images(batches.draw(source)[0], source)
        return self.averaged.eval().cpu()


class _LookAverages:
    """The means of one look's features, moving over the batches."""

    def __init__(self, look: ImageTargets, device: torch.device) -> None:
        self._features = look.layout.features.to(device)
        self._means = torch.cat(look.means).to(device)
        self._weights = torch.cat(look.weights).to(device)
        self._found = torch.zeros_like(self._means)
        self._seen = torch.zeros(len(self._means), device=device)

    def loss(self, images: Tensor, cells: Tensor, counts: Tensor, memory: float) -> Tensor:
        """What is off, by the earlier batches alone, times this batch's features; then these count as earlier."""
        features = self._features(images).float()
        off = self._found / self._seen.clamp_min(1e-9)[:, None] - self._means
        weight = self._weights / counts.clamp_min(1.0)
        loss: Tensor = 2 * ((off * weight[:, None])[cells] * features).sum() / self._weights.sum()
        now = torch.zeros_like(self._means).index_add_(0, cells, features.detach())
        self._found.mul_(memory).add_(now, alpha=1 - memory)
        self._seen.mul_(memory).add_(counts, alpha=1 - memory)
        return loss
