"""The image generator: normals and the row's categories in, a picture out."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.generator import GeneratorError
from models.image_schema import ImageSchema
from models.weights import arrays_under, misfits

PREFIX = "image."


class ImageGenerator(nn.Module):
    """A convolutional generator of images that belong to rows of the table.

    Every layer's channels are scaled and shifted by the row's categories. What is released are its weights with the
    running statistics of its own (generated) images, so that a picture never depends on which others are drawn
    beside it.

    Attributes:
        schema: the images' schema.
        cardinalities: categories of each conditioned column.
    """

    def __init__(
        self, schema: ImageSchema, cardinalities: Sequence[int], *, latent: int = 64, width: int = 32
    ) -> None:
        super().__init__()
        self.schema, self.cardinalities = schema, tuple(int(d) for d in cardinalities)
        self.latent, self.width = latent, width
        doublings = 3 if schema.size > 32 and schema.size % 8 == 0 else 2
        self.base = schema.size >> doublings
        channels = [width << (doublings - k) for k in range(doublings + 1)]  # from the base to the full size
        self.start = nn.Linear(latent + sum(self.cardinalities), channels[0] * self.base**2)
        self.convolutions = nn.ModuleList(
            nn.Conv2d(before, after, 3, padding=1) for before, after in itertools.pairwise(channels)
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(c, affine=False) for c in channels)
        self.styles = nn.ModuleList(nn.Linear(sum(self.cardinalities), 2 * c) for c in channels)
        self.last = nn.Conv2d(channels[-1], schema.channels, 3, padding=1)
        for style in self.styles:
            assert isinstance(style, nn.Linear)
            nn.init.normal_(style.weight, std=0.05)
            nn.init.zeros_(style.bias)

    @classmethod
    def from_arrays(
        cls, arrays: Mapping[str, Tensor], schema: ImageSchema, cardinalities: Sequence[int]
    ) -> ImageGenerator:
        """Read what `to_arrays` gave; names that do not start with `image.` are left alone.

        Raises:
            GeneratorError: an array is missing or unknown, has another shape, or holds a value that is not finite.
        """
        found = arrays_under(arrays, PREFIX)
        try:
            latent = found["start.weight"].shape[1] - sum(cardinalities)
            width = found["last.weight"].shape[1]
            generator = cls(schema, cardinalities, latent=latent, width=width)
            wrong = misfits(found, generator._weights())
        except (KeyError, IndexError, RuntimeError, ValueError) as error:
            raise GeneratorError(f"the image arrays are of no generator of this study: {error}") from error
        if wrong:
            raise GeneratorError(f"image arrays {wrong} are missing, unknown or of another shape")
        for name, array in found.items():
            if not bool(torch.isfinite(array).all()):
                raise GeneratorError(f"{PREFIX}{name} holds a value that is not finite")
        generator.load_state_dict({name: array.float() for name, array in found.items()}, strict=False)
        generator.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return generator.eval()

    def to_arrays(self) -> dict[str, Tensor]:
        """The weights and running statistics on the CPU, for safetensors; names start with `image.`."""
        return {PREFIX + name: tensor.detach().cpu().clone() for name, tensor in self._weights().items()}

    def _weights(self) -> dict[str, Tensor]:
        """Everything that a picture depends on (not the counters of batches)."""
        return {name: tensor for name, tensor in self.state_dict().items() if tensor.is_floating_point()}

    def images(self, codes: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Draw one picture for each row of categories.

        Args:
            codes: (B, columns) int64.
            generator: the source of randomness, on the CPU; torch's own if None.

        Returns:
            float (B, C, H, W) in [0, 1], differentiable.
        """
        normals = torch.randn(len(codes), self.latent, generator=generator)
        return self(codes.to(self.start.weight.device), normals.to(self.start.weight.device))

    def forward(self, codes: Tensor, normals: Tensor) -> Tensor:
        """Pictures of given normals (B, latent)."""
        hot = torch.cat(
            [functional.one_hot(column, d) for column, d in zip(codes.T, self.cardinalities, strict=True)], 1
        ).float()
        maps = self.start(torch.cat([normals, hot], 1)).unflatten(1, (-1, self.base, self.base))
        maps = self._styled(maps.contiguous(memory_format=torch.channels_last), hot, 0)
        for k, convolution in enumerate(self.convolutions):
            assert isinstance(convolution, nn.Conv2d)
            maps = self._styled(doubled(maps, convolution), hot, k + 1)
        return torch.sigmoid(self.last(maps))

    def _styled(self, maps: Tensor, hot: Tensor, layer: int) -> Tensor:
        gain, shift = self.styles[layer](hot)[:, :, None, None].chunk(2, 1)
        return torch.addcmul(
            shift, self.norms[layer](maps), 1 + gain
        ).relu_()  # in place: nothing reads it before

    @torch.no_grad()
    def sample(self, codes: Tensor, *, seed: int, batch_size: int = 100) -> Tensor:
        """Draw pictures as they are served: uint8 (N, C, H, W), the same for the same seed.

        Args:
            codes: (N, columns) int64 from the table's generator.
            seed: of the pictures.
            batch_size: drawn at once; more do not stay in a processor's cache.
        """
        self.eval()
        source = torch.Generator().manual_seed(seed)
        parts = [
            self.images(part, source).mul(255).round_().to(torch.uint8).cpu()
            for part in codes.split(batch_size)
        ]
        return torch.cat(parts) if parts else torch.empty(0, *self.schema.shape, dtype=torch.uint8)


def doubled(maps: Tensor, convolution: nn.Conv2d) -> Tensor:
    """A 3 x 3 convolution of maps whose every pixel was repeated in both directions: (B, C, h, h) to (B, O, 2h, 2h).

    One transposed convolution gives the same: neighbours that are equal are added up in the kernel and not in every
    picture, which is 4 products for 9.
    """
    turned = convolution.weight.flip(2, 3).transpose(0, 1)
    kernel = functional.avg_pool2d(turned, 2, stride=1, padding=1, divisor_override=1)  # sums: (C, O, 4, 4)
    return functional.conv_transpose2d(maps, kernel, convolution.bias, stride=2, padding=1)
