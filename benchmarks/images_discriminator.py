"""A discriminator of pictures that sites train under DP-SGD, and what a generator makes of it. Not the product.

Each site trains the discriminator on its own patients against pictures of the shared generator; the coordinator
averages what the sites send, as federated averaging does. Everything after a DP-SGD step is post-processing, so the
generator may take as many steps against it as it likes.

References:
    Bie, Kamath, Zhang: Private GANs, revisited, TMLR 2023 (many steps of the discriminator for one of the generator,
    adapted by its accuracy on fakes alone).
    McMahan, Moore, Ramage, Hampson, Aguera y Arcas: Communication-efficient learning of deep networks from
    decentralized data, AISTATS 2017 (averaging).
    Azadi, Olsson, Darrell, Goodfellow, Odena: Discriminator Rejection Sampling, ICLR 2019 (exp(D) as a weight).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.image_generator import ImageGenerator
from models.image_lens_training import turned
from models.image_schema import ImageFitSettings, ImageSchema
from models.image_targets import ImageTargets
from models.image_warm_start import CodeBatches, MomentFit
from models.losses import fake_loss, real_loss
from privacy.dpsgd import DiscriminatorTrainer
from privacy.noise import SystemNoise

BETAS = (0.5, 0.99)
PRETRAINING_STEPS = 300
PRETRAINING_BATCH = 128
LADDER = (5, 10, 20, 50, 100)  # steps of the discriminator for one burst of the generator's
SURE = 0.65  # its accuracy on fakes; below it takes more steps from then on
MEMORY = 0.8  # of the moving average of that accuracy
FAKE_BATCHES = 4  # of pictures that one burst of the discriminator sees
SETTLED_STEPS = 30  # until the averages of the features say what is off


class PictureDiscriminator(nn.Module):
    """Two strided convolutions and a linear layer per category; nothing mixes records.

    A record is a picture and which category it is of, side by side: (B, pixels + categories).

    Args:
        image: the pictures' schema.
        categories: of the conditioned column.
        pictures: synthetic, (N, C, H, W) in [0, 1]: inputs are centred and scaled by them.
        width: maps of the first convolution; the second has twice as many.
    """

    centre: Tensor
    scale: Tensor

    def __init__(self, image: ImageSchema, categories: int, pictures: Tensor, width: int = 16) -> None:
        super().__init__()
        self.shape, self.categories = image.shape, categories
        self.first = nn.Conv2d(image.channels, width, 5, stride=2, padding=2)
        self.second = nn.Conv2d(width, 2 * width, 5, stride=2, padding=2)
        self.head = nn.Linear(2 * width * math.ceil(image.size / 4) ** 2, categories)
        self.register_buffer("centre", pictures.mean(0))
        self.register_buffer("scale", pictures.std(0).mean().clamp_min(1e-3))

    def features(self, pictures: Tensor) -> Tensor:
        """What the last layer sees: (B, C, H, W) to (B, F)."""
        maps = (pictures - self.centre) / self.scale
        for layer in (self.first, self.second):
            maps = functional.leaky_relu(layer(maps), 0.2)
        return maps.flatten(1)

    def forward(self, records: Tensor) -> Tensor:
        """Logits, high for real: (B, pixels + categories) to (B,)."""
        pictures, hot = records.split([math.prod(self.shape), self.categories], 1)
        found = self.features(pictures.unflatten(1, self.shape))
        return (self.head(found) * hot).sum(1)

    def pretrain(self, pictures: Tensor, codes: Tensor, *, steps: int = PRETRAINING_STEPS) -> None:
        """Learn to tell categories of synthetic pictures, uint8, and forget the last layer: costs nothing."""
        optimizer = torch.optim.Adam(self.parameters(), 2e-3)
        for _ in range(steps):
            rows = torch.randint(len(pictures), (PRETRAINING_BATCH,))
            told = self.head(self.features(turned(pictures[rows].float() / 255)))
            loss = functional.cross_entropy(told, codes[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)


def records_of(module: PictureDiscriminator, pictures: Tensor, codes: Tensor) -> Tensor:
    """Records as the discriminator takes them, of pictures (N, C, H, W) in [0, 1] and their categories (N,)."""
    return torch.cat([pictures.flatten(1), functional.one_hot(codes, module.categories).float()], 1)


@dataclass(frozen=True, kw_only=True)
class DiscriminatorPlan:
    """How the sites train: all public.

    Attributes:
        steps: of DP-SGD at each site, all rounds together.
        sample_rate: of each patient per step.
        noise_multiplier: of the summed gradient.
        batch_size: that the sum is divided by, and how many fakes stand beside; the same at every site.
        learning_rate: of Adam.
        local_steps: between two averages.
    """

    steps: int
    sample_rate: float
    noise_multiplier: float
    batch_size: int
    learning_rate: float = 1e-3
    local_steps: int = 10


class FederatedDiscriminator:
    """One discriminator, trained at every site on its own patients.

    Args:
        module: where it starts.
        sites: each site's records as `records_of` makes them, one per patient. Sensitive.
        plan: of the training.
    """

    def __init__(
        self, module: PictureDiscriminator, sites: Sequence[Tensor], plan: DiscriminatorPlan
    ) -> None:
        self.module, self.plan, self.left = module, plan, plan.steps
        self._sites = []
        for records in sites:
            own = copy.deepcopy(module)
            trainer = DiscriminatorTrainer(
                own,
                torch.optim.Adam(
                    [p for p in own.parameters() if p.requires_grad], plan.learning_rate, betas=BETAS
                ),
                sample_rate=plan.sample_rate,
                noise_multiplier=plan.noise_multiplier,
                max_grad_norm=1.0,
                nominal_batch_size=plan.batch_size,
                physical_batch_size=512,
                noise=SystemNoise(),
                authorised_steps=plan.steps,
            )
            self._sites.append((own, records, trainer))

    def train(self, fakes: Tensor, steps: int) -> None:
        """So many steps at each site, at most those left, against fakes (F, ...) in the form of records."""
        done = 0
        while done < steps and self.left:
            local = min(self.plan.local_steps, steps - done, self.left)
            for own, records, trainer in self._sites:
                own.load_state_dict(self.module.state_dict())
                for _ in range(local):
                    beside = fakes[torch.randint(len(fakes), (self.plan.batch_size,))]
                    trainer.step(records, beside, real_loss, fake_loss)
            states = [own.state_dict() for own, *_ in self._sites]
            self.module.load_state_dict(
                {name: torch.stack([state[name] for state in states]).mean(0) for name in states[0]}
            )
            done, self.left = done + local, self.left - local


class OpposedFit(MomentFit):
    """A fit that the measured means hold, with a discriminator beside them.

    In every step the discriminator's gradient by the pictures is as long as `strength` of the moments' is on average.
    """

    def __init__(
        self,
        generator: ImageGenerator,
        looks: Sequence[ImageTargets],
        settings: ImageFitSettings,
        *,
        strength: float,
    ) -> None:
        super().__init__(generator, looks, settings)
        self._strength, self._lengths = strength, torch.zeros(2)

    def oppose(
        self, module: PictureDiscriminator, batch: tuple[Tensor, Tensor], source: torch.Generator
    ) -> None:
        """One step of the generator, by the moments and against the discriminator."""
        codes, places = batch
        done = self._step / self.settings.steps
        self._optimizer.param_groups[0]["lr"] = (
            self.settings.learning_rate * 0.5 * (1 + math.cos(math.pi * done))
        )
        cells = codes.gather(1, places[:, None]).squeeze(1) + self._offsets[places]
        counts = torch.bincount(cells, minlength=sum(self.generator.cardinalities)).float()
        self.generator.train()
        with torch.autocast(self._device.type, torch.bfloat16):
            images = self.generator.images(codes, source)
            seen = images.detach().float().requires_grad_()
            by_moments = torch.stack([look.loss(seen, cells, counts, 0.98) for look in self._looks]).sum()
        against = real_loss(module(records_of(module, seen, cells))).sum()
        if self._step >= SETTLED_STEPS:
            first, second = (torch.autograd.grad(part, seen)[0] for part in (by_moments, against))
            now = torch.stack([first.norm(), second.norm()])
            self._lengths = torch.where(self._lengths > 0, self._lengths.lerp(now, 0.05), now)
            factor = self._strength * self._lengths[0] / self._lengths[1].clamp_min(1e-12)
            self._optimizer.zero_grad(set_to_none=True)
            images.backward((first + factor * second).to(images.dtype))
            self._optimizer.step()
        self._step += 1
        with torch.no_grad():
            kept = min(0.99, self._step / (self._step + 10))
            for mean, weight in zip(self.averaged.parameters(), self.generator.parameters(), strict=True):
                mean.lerp_(weight, 1 - kept)


def refined(
    generator: ImageGenerator,
    looks: Sequence[ImageTargets],
    batches: CodeBatches,
    discriminator: FederatedDiscriminator,
    settings: ImageFitSettings,
    *,
    strength: float,
    source: torch.Generator,
) -> ImageGenerator:
    """Spend the discriminator's steps; between them the generator takes its own, in proportion.

    Args:
        generator: the warm start.
        looks: what the sites measured, which holds the generator.
        batches: rows to draw pictures for, of one conditioned column.
        discriminator: the sites'.
        settings: of the generator's steps.
        strength: of the discriminator's gradient beside the moments'.
        source: of rows and pictures.
    """
    fit = OpposedFit(copy.deepcopy(generator).train(), looks, settings, strength=strength)
    module, rung, sure, taken = discriminator.module, 0, 1.0, 0
    while discriminator.left:
        with torch.no_grad():
            codes = torch.cat([batches.draw(source)[0] for _ in range(FAKE_BATCHES)])
            fakes = records_of(module, fit.generator.images(codes, source), codes[:, 0])
        discriminator.train(fakes, LADDER[rung])
        with torch.no_grad():
            found = float((module(fakes) < 0).float().mean())
        sure = MEMORY * sure + (1 - MEMORY) * found
        if sure < SURE and rung + 1 < len(LADDER):
            rung, sure = rung + 1, 1.0
        due = settings.steps * (discriminator.plan.steps - discriminator.left) // discriminator.plan.steps
        for _ in range(due - taken):
            fit.oppose(module, batches.draw(source), source)
        taken = due
    return fit.released(batches, source)


@torch.no_grad()
def weights_of(
    module: PictureDiscriminator, pictures: Tensor, codes: Tensor, *, power: float, most: float = 3.0
) -> Tensor:
    """exp(D) to a power, for pictures uint8 (N, C, H, W): how much likelier each is among patients; (N,)."""
    logits = torch.cat(
        [
            module(records_of(module, part.float() / 255, own))
            for part, own in zip(pictures.split(500), codes.split(500), strict=True)
        ]
    )
    for c in codes.unique():  # within its category: how many are of which, the table says
        logits[codes == c] -= logits[codes == c].mean()
    return (power * logits).clamp(max=most).exp()
