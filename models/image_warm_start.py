"""Fit the image generator to the summed noisy image moments. Post-processing: no budget, as many steps as it takes.

The loss is the squared distance between generated and measured means of the features, summed over categories and
weighted by what the noise leaves of each. A batch estimates its gradient without bias: the distance is taken between
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

from models.image_features import ImageFeatures, fastest_device
from models.image_generator import ImageGenerator
from models.image_moments import ImageMomentLayout
from models.image_schema import ImageFitSettings, ImageSchema
from models.schema import StudySchema

Progress = Callable[[float], None]
JointCodes = Callable[[int, torch.Generator], Tensor]

POOL_ROWS = 20_000
MEMORY = (0.93, 0.99)  # of the moving average of the means, at the start and at the end
WEIGHT_MEMORY = 0.998  # of the moving average of the generator's weights
SETTLING_BATCHES = 50  # that the released running statistics are averaged over


class ImageFitError(ValueError):
    """Moments that no image generator can be fitted to."""


class ImageTargets:
    """Noisy means of the features, one block per conditioned column.

    Attributes:
        means: (d_j, F) float32 each.
        weights: (d_j,) each, of a category in the loss; 0 where the noise hides whether it has patients.
    """

    def __init__(
        self,
        layout: ImageMomentLayout,
        noisy_moments: Tensor,
        class_totals: Sequence[Tensor],
        *,
        noise_std: float,
    ) -> None:
        if noisy_moments.shape != (layout.size,) or not bool(torch.isfinite(noisy_moments).all()):
            raise ImageFitError(
                f"the image moments must be {layout.size} finite values; found {tuple(noisy_moments.shape)}"
            )
        if [len(total) for total in class_totals] != list(layout.cardinalities):
            raise ImageFitError(
                f"class_totals have {[len(t) for t in class_totals]} categories; needed: {layout.cardinalities}"
            )
        self.means, self.weights = [], []
        for column, totals in enumerate(class_totals):
            known = totals.double()
            # Noise of a mean over its norm: a category whose features are all noise says nothing.
            blur = noise_std * math.sqrt(layout.features.size) / known.clamp_min(1e-9)
            usable = (known > 1) & (blur < MAX_BLUR)
            safe = torch.where(usable, known, 1.0)
            self.means.append((layout.block(noisy_moments.double(), column) / safe[:, None]).float())
            self.weights.append(torch.where(usable, 1 / (1 + (blur / TYPICAL_BLUR) ** 2), 0.0).float())
        if not any(bool((weight > 0).any()) for weight in self.weights):
            raise ImageFitError(
                "the image moments are within the noise of none; more patients or a larger epsilon are needed"
            )


MAX_BLUR = 10.0
TYPICAL_BLUR = 0.5


def fit_images(
    image: ImageSchema,
    table: StudySchema,
    noisy_moments: Tensor,
    class_totals: Sequence[Tensor],
    *,
    noise_std: float,
    settings: ImageFitSettings,
    joint_codes: JointCodes,
    progress: Progress | None = None,
    seed: int = 0,
    device: torch.device | None = None,
) -> ImageGenerator:
    """Fit a generator to the sites' noisy image moments.

    Privacy: post-processing of what the sites released; costs nothing.

    Args:
        image, table: the study's schemas.
        noisy_moments: (size,) float64, the sites' vectors added up.
        class_totals: for each conditioned column the noisy numbers of patients of its categories, (d_j,).
        noise_std: standard deviation of the noise in one entry of `noisy_moments`, all sites' noise together.
        settings: of the fit.
        joint_codes: draws (n, columns) categories of the conditioned columns from the fitted table generator.
        progress: called with the done part, from 0 to 1.
        seed: of first weights and batches.
        device: where to compute; `fastest_device` if None.

    Raises:
        ImageFitError: the moments are not finite or not of this study, or tell of no patients.
    """
    device = device or fastest_device()
    layout = ImageMomentLayout.of(table, image)
    targets = ImageTargets(layout, noisy_moments, class_totals, noise_std=noise_std)
    source = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        generator = ImageGenerator(image, layout.cardinalities, latent=settings.latent, width=settings.width)
    generator.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    batches = CodeBatches(joint_codes(POOL_ROWS, source), targets, settings.batch_size)
    fit = MomentFit(generator, layout.features.to(device), targets, settings)
    for step in range(settings.steps):
        fit.step(batches.draw(source), source)
        if progress:
            progress((step + 1) / settings.steps)
    return fit.released(batches, source)


class CodeBatches:
    """Rows to draw pictures for: each conditioned column in turn gets its categories in equal numbers.

    A category's rows come from the table's generator under that category, so their other columns are as in the
    table and the features' mean over them is what was measured.
    """

    def __init__(self, pool: Tensor, targets: ImageTargets, batch_size: int) -> None:
        self.pool = pool
        self._rows = [
            {
                c: (pool[:, column] == c).nonzero().squeeze(1)
                for c in range(len(weights))
                if weights[c] > 0 and bool((pool[:, column] == c).any())
            }
            for column, weights in enumerate(targets.weights)
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
        self,
        generator: ImageGenerator,
        features: ImageFeatures,
        targets: ImageTargets,
        settings: ImageFitSettings,
    ) -> None:
        self.generator, self.features, self.settings = generator, features, settings
        self.averaged = copy.deepcopy(generator)
        device = generator.start.weight.device
        self._means = torch.cat(targets.means).to(device)
        self._weights = torch.cat(targets.weights).to(device)
        self._offsets = torch.tensor([0, *generator.cardinalities]).cumsum(0)[:-1]
        self._found = torch.zeros_like(self._means)
        self._seen = torch.zeros(len(self._means), device=device)
        self._optimizer = torch.optim.Adam(generator.parameters(), settings.learning_rate, betas=(0.5, 0.99))
        self._step = 0

    def step(self, batch: tuple[Tensor, Tensor], source: torch.Generator) -> None:
        """One step of the generator."""
        codes, places = batch
        done = self._step / self.settings.steps
        self._optimizer.param_groups[0]["lr"] = (
            self.settings.learning_rate * 0.5 * (1 + math.cos(math.pi * done))
        )
        device = self._means.device
        cells = codes.gather(1, places[:, None]).squeeze(1) + self._offsets[places]
        counts = torch.bincount(cells, minlength=len(self._means)).float().to(device)
        cells = cells.to(device)
        self.generator.train()
        with torch.autocast(device.type, torch.bfloat16):
            features = self.features(self.generator.images(codes, source)).float()
        now = torch.zeros_like(self._means).index_add_(0, cells, features.detach())
        memory = MEMORY[0] + (MEMORY[1] - MEMORY[0]) * done
        if self._step:  # what is off, by the earlier batches alone
            off = self._found / self._seen.clamp_min(1e-9)[:, None] - self._means
            weight = self._weights / counts.clamp_min(1.0)
            loss = 2 * ((off * weight[:, None])[cells] * features).sum() / self._weights.sum()
            self._optimizer.zero_grad(set_to_none=True)
            loss.backward()
            self._optimizer.step()
        self._found.mul_(memory).add_(now, alpha=1 - memory)
        self._seen.mul_(memory).add_(counts, alpha=1 - memory)
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
