"""Train the lens of a second exchange on the pictures of the first release. Post-processing: costs no budget.

The network learns to tell the categories of the conditioned columns apart, and which of a few ways a picture was
spoilt in: blurred, sharpened too much, two pictures over each other or beside each other, bent. The first release is
itself a somewhat spoilt copy of the patients' pictures; what separates it from a more spoilt one goes on to separate
it from a better one.

References:
    Hendrycks, Mazeika, Kadavath, Song: Using self-supervised learning can improve model robustness, NeurIPS 2019
    (a second head that tells transformations apart).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.image_features import fastest_device
from models.image_lens import HIDDEN, ImageLens
from models.image_schema import ImageSchema

Progress = Callable[[float], None]

BATCH = 128
LEARNING_RATE = 2e-3
DROPOUT = 0.3
SETTLED_ON = 4000  # pictures that the centre and scale are taken from
WAYS = 6  # of `spoilt`, the first of which leaves a picture alone


def train_lens(
    schema: ImageSchema,
    cardinalities: Sequence[int],
    pictures: Tensor,
    codes: Tensor,
    *,
    steps: int,
    progress: Progress | None = None,
    seed: int = 0,
    device: torch.device | None = None,
) -> ImageLens:
    """Learn a lens.

    Privacy: looks at pictures of a release alone.

    Args:
        schema: of the images.
        cardinalities: categories of each conditioned column.
        pictures: uint8 (N, C, H, W), synthetic.
        codes: (N, columns) int64, the categories that they were drawn for.
        steps: of the optimiser.
        progress: called with the done part, from 0 to 1.
        seed: of first weights and batches.
        device: where to compute; `fastest_device` if None.
    """
    device = device or fastest_device()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        lens = ImageLens(schema).to(device)
        head = nn.Linear(HIDDEN, sum(cardinalities) + WAYS).to(device)
        optimizer = torch.optim.Adam([*lens.parameters(), *head.parameters()], LEARNING_RATE)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        for step in range(steps):
            rows = torch.randint(len(pictures), (BATCH,))
            images, ways = spoilt(turned(pictures[rows].float() / 255))
            with torch.autocast(device.type, torch.bfloat16):
                hidden = lens.layers(images.to(device))[-1]
                told = head(functional.dropout(hidden, DROPOUT)).float()
            told = told.split([*cardinalities, WAYS], 1)
            wanted = [*codes[rows].T, ways]
            loss = torch.stack(
                [functional.cross_entropy(a, b.to(device)) for a, b in zip(told, wanted, strict=True)]
            ).sum()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
            if progress:
                progress((step + 1) / steps)
    lens = lens.eval().requires_grad_(False)
    lens.settle(pictures[:SETTLED_ON].to(device).float() / 255)
    return lens.cpu()


def turned(images: Tensor) -> Tensor:
    """Turned by up to 10 degrees, zoomed by 10 % and shifted by 7 %, each at random: (B, C, H, W) in [0, 1]."""
    count = len(images)
    angle = (torch.rand(count) * 2 - 1) * math.radians(10)
    zoom = 1 + (torch.rand(count) * 2 - 1) * 0.1
    shift = (torch.rand(count, 2, 1) * 2 - 1) * 0.14
    rows = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], 1).view(-1, 2, 2)
    return _resampled(images, torch.cat([rows * zoom[:, None, None], shift], 2))


def spoilt(images: Tensor) -> tuple[Tensor, Tensor]:
    """Each picture spoilt in one way, and in which (B,), 0 where it is as it was: (B, C, H, W) in [0, 1]."""
    count = len(images)
    ways = torch.randperm(count) % WAYS
    others = images.roll(1, 0)
    half = images.shape[2] // 2
    made = images.clone()
    blurred = _blurred(images)
    made[ways == 1] = _blurred(blurred)[ways == 1]
    made[ways == 2] = (2 * images - blurred).clamp(0, 1)[ways == 2]
    made[ways == 3] = (images + others)[ways == 3] / 2
    made[ways == 4] = torch.cat([others[:, :, :half], images[:, :, half:]], 2)[ways == 4]
    bent = (ways == 5).nonzero().squeeze(1)
    if len(bent):
        coarse = 0.12 * torch.randn(len(bent), 2, 5, 5)
        moved = functional.interpolate(coarse, size=images.shape[2:], mode="bicubic").permute(0, 2, 3, 1)
        made[bent] = _resampled(images[bent], torch.eye(2, 3).repeat(len(bent), 1, 1), moved)
    return made, ways


def _blurred(images: Tensor) -> Tensor:
    kernel = torch.tensor([1.0, 2.0, 1.0]) / 4
    padded = functional.pad(images, (1, 1, 1, 1), mode="replicate").flatten(0, 1).unsqueeze(1)
    return functional.conv2d(padded, torch.outer(kernel, kernel)[None, None]).view_as(images)


def _resampled(images: Tensor, maps: Tensor, moved: Tensor | float = 0.0) -> Tensor:
    grid = functional.affine_grid(maps, list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid + moved, align_corners=False, padding_mode="border")
