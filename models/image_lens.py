"""What a second exchange measures of an image: features of a small network that the coordinator trained on the first
release's pictures.

The first look (`models.image_features`) is the same for every study. The lens is made for one: its network tells the
study's categories apart (`models.image_lens_training`), and its features are centred and scaled by the pictures of
the first release, so that a patient's bounded contribution is spent on what differs between pictures and not on what
all share. All of it follows from noisy releases, so it costs no budget.

With z(x) the centred and scaled activations of the network's four layers the features of an image x are

    p(x) = z(x) / sqrt(|z(x)|^2 + 1)                         its norm is below 1,
    q(x) = (cos(W z(x)), sin(W z(x))) / sqrt(D)              random Fourier features: a Gaussian kernel's mean,

side by side. Whatever the network, an image's features are held to `max_norm` at the site before they are summed.

References:
    Harder, Jalali Asadabadi, Sutherland, Park: Pre-trained perceptual features improve differentially private image
    generation, TMLR 2023 (means of a network's features; there the network has seen public pictures).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.image_features import public_normals
from models.image_schema import ImageSchema
from models.weights import arrays_under, misfits

PREFIX = "lens."
WIDTH = 32
HIDDEN = 128
FREQUENCIES = 1500
STREAM = 1  # of the public normals; the first look has stream 0


class LensError(ValueError):
    """Arrays that are no lens of this study."""


class ImageLens(nn.Module):
    """The features of a second look.

    Attributes:
        schema: of the images.
        activations: how many activations the features look at.
        centre: (activations,) subtracted from them.
        scale: (activations,) by which they are divided, above 0.
    """

    centre: Tensor
    scale: Tensor
    directions: Tensor

    def __init__(self, schema: ImageSchema) -> None:
        super().__init__()
        self.schema = schema
        self._grid = 7 if schema.size % 7 == 0 else 8
        channels = (schema.channels, WIDTH, 2 * WIDTH, 2 * WIDTH)
        self.convolutions = nn.ModuleList(
            nn.Conv2d(before, after, 3, padding=1) for before, after in itertools.pairwise(channels)
        )
        sides = [min(schema.size >> depth, self._grid) for depth in range(3)]
        self.hidden = nn.Linear(channels[-1] * sides[-1] ** 2, HIDDEN)
        pooled = [count * side**2 for count, side in zip(channels[1:], sides, strict=True)]
        self.parts = (*pooled, HIDDEN)
        self.activations = sum(self.parts)
        self.register_buffer("centre", torch.zeros(self.activations))
        self.register_buffer("scale", torch.ones(self.activations))
        self.register_buffer("directions", _directions(self.activations), persistent=False)

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Tensor], schema: ImageSchema) -> ImageLens:
        """Read what `to_arrays` gave; names that do not start with `lens.` are left alone.

        Raises:
            LensError: an array is missing or unknown, has another shape, or holds a value that cannot be used.
        """
        found, lens = arrays_under(arrays, PREFIX), cls(schema)
        wrong = misfits(found, lens.state_dict())
        if wrong:
            raise LensError(f"lens arrays {wrong} are missing, unknown or of another shape")
        for name, array in found.items():
            if not array.is_floating_point() or not bool(torch.isfinite(array).all()):
                raise LensError(f"{PREFIX}{name} holds a value that is not finite")
        if not bool((found["scale"] > 0).all()):
            raise LensError(f"{PREFIX}scale holds a value that is not above 0")
        lens.load_state_dict({name: array.float() for name, array in found.items()})
        return lens.eval().requires_grad_(False)

    def to_arrays(self) -> dict[str, Tensor]:
        """Everything that the features follow from, on the CPU, for safetensors; names start with `lens.`."""
        return {PREFIX + name: tensor.detach().cpu().clone() for name, tensor in self.state_dict().items()}

    @property
    def size(self) -> int:
        """F, features of one image."""
        return self.activations + 2 * FREQUENCIES

    @property
    def max_norm(self) -> float:
        """Bound on the L2 norm of one image's features."""
        return math.sqrt(2)

    def layers(self, images: Tensor) -> list[Tensor]:
        """Activations (B, part) of each layer, those of convolutions pooled: (B, C, H, W) in [0, 1]."""
        maps, found = images, []
        for depth, convolution in enumerate(self.convolutions):
            if depth:
                maps = functional.max_pool2d(maps, 2)
            maps = functional.relu(convolution(maps))
            found.append(functional.adaptive_avg_pool2d(maps, min(maps.shape[-1], self._grid)).flatten(1))
        return [*found, functional.relu(self.hidden(found[-1]))]

    def forward(self, images: Tensor) -> Tensor:
        """Features, differentiable: (B, C, H, W) in [0, 1] to (B, F) of norm at most `max_norm`."""
        z = (torch.cat(self.layers(images), 1) - self.centre) / self.scale
        p = z * (z.square().sum(1, keepdim=True) + 1).rsqrt()
        phases = z @ self.directions
        weight = 1 / math.sqrt(FREQUENCIES)
        return torch.cat([p, weight * phases.cos(), weight * phases.sin()], 1)

    @torch.no_grad()
    def settle(self, images: Tensor) -> None:
        """Centre and scale by pictures (N, C, H, W) in [0, 1]: each layer then has the same share of the norm."""
        found = [torch.cat(layer) for layer in zip(*map(self.layers, images.split(256)), strict=True)]
        spread = [(layer - layer.mean(0)).square().sum(1).mean().sqrt().clamp_min(1e-6) for layer in found]
        self.centre.copy_(torch.cat([layer.mean(0) for layer in found]))
        self.scale.copy_(
            torch.cat(
                [
                    part.expand(size) * math.sqrt(len(found))
                    for part, size in zip(spread, self.parts, strict=True)
                ]
            )
        )


@lru_cache(maxsize=2)
def _directions(activations: int) -> Tensor:
    """(activations, FREQUENCIES), made once: drawing ten million normals takes longer than a small fit's step."""
    return math.sqrt(2) * public_normals((activations, FREQUENCIES), stream=STREAM)
