"""What is measured of an image: wavelet scattering on a coarse grid, and random Fourier features of it.

Everything here follows from code and `PUBLIC_CONSTANT`; nothing is learnt from any image, so every site computes
the same function and its definition costs no budget.

With s(x) the scattering coefficients (order 0: the pooled image; order 1: pooled moduli of oriented wavelets; order
2: pooled moduli of wavelets on those moduli) the features of an image x are

    p(x) = s(x) / sqrt(|s(x)|^2 + c^2)                       its norm is below 1 and keeps the image's brightness,
    q(x) = (cos(W p(x)), sin(W p(x))) / sqrt(D)              random Fourier features: a Gaussian kernel's mean,

side by side as (p, b q), whose norm is below sqrt(1 + b^2).

References:
    Mallat: Group Invariant Scattering, Communications on Pure and Applied Mathematics, 2012.
    Rahimi, Recht: Random Features for Large-Scale Kernel Machines, NeurIPS 2007.
    Harder, Adamczewski, Park: DP-MERF, AISTATS 2021 (mean embeddings as the one thing that is measured).
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from models.image_schema import ImageSchema

PUBLIC_CONSTANT = 0x6665647477696E
ORIENTATIONS = 8
FREQUENCIES = 1500
BANDWIDTH = 3.0
FOURIER_WEIGHT = 1.0
BRIGHTNESS = 2.0
ORDER_WEIGHTS = (1.0, 1.0, 0.7)
DENSE_SIDE = 16
"""Maps of at most this side are filtered by one matrix product, which is many times faster there."""
SCATTERED_AT_ONCE = 3_000_000
"""Responses of the finest wavelets that one pass on a CPU may hold; many more do not stay in its cache."""


class ImageFeatures(nn.Module):
    """The fixed features of a study's images.

    Attributes:
        size: F, features of one image.
        max_norm: bound on the L2 norm of one image's features.
    """

    wavelets: Tensor
    opponents: Tensor
    directions: Tensor

    def __init__(self, schema: ImageSchema) -> None:
        super().__init__()
        self.schema = schema
        self.grid = 7 if schema.size % 7 == 0 else 8
        self.num_levels = 2 if schema.size <= 32 else 3
        self.register_buffer("wavelets", oriented_wavelets(ORIENTATIONS, 7), persistent=False)
        self.register_buffer("opponents", _opponents(schema.channels), persistent=False)
        for depth in range(self.num_levels):
            side = schema.size >> depth
            for stride, seen in ((1, side), (2, side // 2)):
                if seen <= DENSE_SIDE:
                    self.register_buffer(
                        f"dense_{seen}_{stride}", self._dense(seen, stride), persistent=False
                    )
        self._at_once = SCATTERED_AT_ONCE // (2 * ORIENTATIONS * math.prod(schema.shape))
        with torch.no_grad():
            self.scattering_size = self.scattering(torch.zeros(1, *schema.shape)).shape[1]
        directions = BANDWIDTH * public_normals((self.scattering_size, FREQUENCIES))
        self.register_buffer("directions", directions, persistent=False)

    @classmethod
    def of(cls, schema: ImageSchema) -> ImageFeatures:
        """The features of a study's images."""
        return cls(schema)

    @property
    def size(self) -> int:
        """F."""
        return self.scattering_size + 2 * FREQUENCIES

    @property
    def max_norm(self) -> float:
        """L2 bound of one image's features."""
        return math.sqrt(1 + FOURIER_WEIGHT**2)

    def scattering(self, images: Tensor) -> Tensor:
        """Scattering coefficients of orders 0 to 2: (B, C, H, W) in [0, 1] to (B, S)."""
        level = torch.einsum("oc,bchw->bohw", self.opponents, images) if images.shape[1] > 1 else images
        batch, channels = images.shape[:2]
        found = [ORDER_WEIGHTS[0] * self._pooled(level).flatten(1)]
        for depth in range(self.num_levels):
            rows = level.reshape(batch * channels, 1, *level.shape[2:])
            moduli = self._moduli(rows)  # (B * C, L, h, w)
            found.append(ORDER_WEIGHTS[1] * self._pooled(moduli).reshape(batch, -1))
            if depth + 1 < self.num_levels:
                # Of colour images the second order sees the brightness alone.
                first = moduli.reshape(batch, channels, ORIENTATIONS, *moduli.shape[2:])[:, 0]
                halved = functional.avg_pool2d(first, 2).flatten(0, 1).unsqueeze(1)  # (B * L, 1, h/2, w/2)
                second = self._pooled(self._moduli(halved, stride=2))
                found.append(ORDER_WEIGHTS[2] * second.reshape(batch, -1))
                level = functional.avg_pool2d(level, 2)
        return torch.cat(found, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Features, differentiable: (B, C, H, W) in [0, 1] to (B, F) of norm at most `max_norm`."""
        at_once = len(images) if images.device.type != "cpu" else self._at_once
        coefficients = torch.cat([self.scattering(part) for part in images.split(max(1, at_once))])
        scale = (coefficients.square().sum(1, keepdim=True) + BRIGHTNESS**2).rsqrt()
        p = coefficients * scale
        phases = p @ self.directions
        weight = FOURIER_WEIGHT / math.sqrt(FREQUENCIES)
        return torch.cat([p, weight * phases.cos(), weight * phases.sin()], 1)

    def _moduli(self, rows: Tensor, *, stride: int = 1) -> Tensor:
        """Moduli of the wavelets' responses: (N, 1, h, h) to (N, L, h / stride, h / stride)."""
        side = rows.shape[-1]
        if side <= DENSE_SIDE:
            both = rows.flatten(1) @ getattr(self, f"dense_{side}_{stride}")
            both = both.unflatten(1, (2 * ORIENTATIONS, -1))
        else:
            both = functional.conv2d(rows, self.wavelets, padding=3, stride=stride).flatten(2)
        even, odd = both[:, :ORIENTATIONS], both[:, ORIENTATIONS:]
        out = (side + stride - 1) // stride
        return (even.square() + odd.square() + 1e-8).sqrt().unflatten(2, (out, out))

    def _dense(self, side: int, stride: int) -> Tensor:
        """The wavelets as a matrix: (side^2, 2 L x positions)."""
        units = torch.eye(side * side).view(-1, 1, side, side)
        return functional.conv2d(units, self.wavelets, padding=3, stride=stride).flatten(1)

    def _pooled(self, maps: Tensor) -> Tensor:
        side = maps.shape[-1]
        if side <= self.grid:
            return maps
        if side % self.grid == 0:
            return functional.avg_pool2d(maps, side // self.grid)
        return functional.adaptive_avg_pool2d(maps, self.grid)


def fastest_device() -> torch.device:
    """A GPU where there is one: pictures are measured and fitted there without anybody asking for it."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def oriented_wavelets(orientations: int, side: int) -> Tensor:
    """Complex Morlet-like filters of unit norm: (2 L, 1, side, side), real parts first."""
    reach = torch.arange(side, dtype=torch.float64) - (side - 1) / 2
    y, x = torch.meshgrid(reach, reach, indexing="ij")
    real, imaginary = [], []
    for k in range(orientations):
        angle = math.pi * k / orientations
        along, across = x * math.cos(angle) + y * math.sin(angle), y * math.cos(angle) - x * math.sin(angle)
        envelope = torch.exp(-(along.square() + (0.8 * across).square()) / 2)
        even, odd = envelope * torch.cos(2.2 * along), envelope * torch.sin(2.2 * along)
        even = even - envelope * (even.sum() / envelope.sum())  # blind to brightness
        norm = (even.square() + odd.square()).sum().sqrt()
        real.append(even / norm)
        imaginary.append(odd / norm)
    return torch.stack(real + imaginary).unsqueeze(1).float()


def public_normals(shape: tuple[int, ...], *, stream: int = 0) -> Tensor:
    """Standard normals (float32) that follow from `PUBLIC_CONSTANT` alone, on every machine and version.

    Not noise: anybody can compute them. Raw 64-bit words of Philox, whose sequence numpy guarantees, are turned into
    normals by Box and Muller's transform here.
    """
    count = math.prod(shape)
    words = np.random.Philox(key=[PUBLIC_CONSTANT, stream]).random_raw(2 * ((count + 1) // 2))
    uniforms = ((words >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
    radius = np.sqrt(-2 * np.log(uniforms[::2]))
    angle = 2 * np.pi * uniforms[1::2]
    normals = np.stack([radius * np.cos(angle), radius * np.sin(angle)], 1).reshape(-1)[:count]
    return torch.from_numpy(normals.reshape(shape).astype(np.float32))


def _opponents(channels: int) -> Tensor:
    """Orthonormal rows: brightness first, then two colour contrasts."""
    if channels == 1:
        return torch.ones(1, 1)
    return torch.tensor(
        [
            [1 / math.sqrt(3)] * 3,
            [1 / math.sqrt(2), -1 / math.sqrt(2), 0],
            [1 / math.sqrt(6), 1 / math.sqrt(6), -2 / math.sqrt(6)],
        ]
    )
