"""Train the lens of a second exchange on the pictures of the first release. Post-processing: costs no budget.

The network learns to tell the categories of the conditioned columns apart, from pictures that are turned, zoomed and
shifted a little.
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
        head = nn.Linear(HIDDEN, sum(cardinalities)).to(device)
        optimizer = torch.optim.Adam([*lens.parameters(), *head.parameters()], LEARNING_RATE)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        for step in range(steps):
            rows = torch.randint(len(pictures), (BATCH,))
            images = turned(pictures[rows].float() / 255).to(device)
            with torch.autocast(device.type, torch.bfloat16):
                hidden = lens.layers(images)[-1]
                told = head(functional.dropout(hidden, DROPOUT)).float()
            wanted = codes[rows].to(device).T
            columns = zip(told.split(list(cardinalities), 1), wanted, strict=True)
            loss = torch.stack([functional.cross_entropy(*column) for column in columns]).sum()
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
    maps = torch.cat([rows * zoom[:, None, None], shift], 2)
    grid = functional.affine_grid(maps, list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, align_corners=False, padding_mode="border")
