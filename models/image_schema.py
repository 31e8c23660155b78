"""What a study says about its patients' images: their form, and which columns of the table they depend on."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from models.frozen import Frozen
from models.schema import StudySchema

MAX_BLOCKS = 256
"""Categories of all conditioned columns together: each has a block of features in the measured vector."""


class ImageSchema(Frozen):
    """The images of a study.

    Attributes:
        size: pixels along each side; sites scale their images to it.
        channels: 1 (greyscale) or 3 (red, green, blue).
        conditioned_on: columns of the study's table that the picture depends on; levels of a column (bins of a
            number) are its categories.
    """

    size: int = Field(default=28, ge=8, le=64, multiple_of=4)
    channels: Literal[1, 3] = 1
    conditioned_on: tuple[str, ...] = Field(min_length=1, max_length=4)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of one image."""
        return self.channels, self.size, self.size

    def columns_in(self, table: StudySchema) -> tuple[int, ...]:
        """Positions of the conditioned columns in the table.

        Raises:
            ValueError: the table lacks one, or they have too many levels together.
        """
        missing = [name for name in self.conditioned_on if name not in table.names]
        if missing:
            raise ValueError(
                f"image.conditioned_on names {missing}, which the table lacks; it has {list(table.names)}"
            )
        places = tuple(table.names.index(name) for name in self.conditioned_on)
        blocks = sum(table.cardinalities[k] for k in places)
        if blocks > MAX_BLOCKS:
            raise ValueError(
                f"image.conditioned_on: {list(self.conditioned_on)} have {blocks} levels together, at most "
                f"{MAX_BLOCKS} can be measured; take fewer columns or coarser bins"
            )
        return places

    def cardinalities_in(self, table: StudySchema) -> tuple[int, ...]:
        """Levels of the conditioned columns, in the order of `conditioned_on`."""
        return tuple(table.cardinalities[k] for k in self.columns_in(table))

    @model_validator(mode="after")
    def _distinct(self) -> ImageSchema:
        if len(set(self.conditioned_on)) != len(self.conditioned_on):
            raise ValueError(f"image.conditioned_on: a column stands twice in {list(self.conditioned_on)}")
        return self


class ImageFitSettings(Frozen):
    """How the image generator is fitted to the noisy moments (post-processing, no budget).

    Attributes:
        steps: of the optimiser; where the sites measure several times, in equal parts after each.
        batch_size: generated images per step; moving averages make small ones the better bargain.
        learning_rate: at its highest; it falls along a cosine.
        latent: normals that an image is drawn from.
        width: channels of the generator's last but one layer; earlier ones have more.
    """

    steps: int = Field(default=6000, ge=1, le=1_000_000)
    batch_size: int = Field(default=100, ge=8, le=16_384)
    learning_rate: float = Field(default=2e-3, gt=0)
    latent: int = Field(default=64, ge=1, le=1024)
    width: int = Field(default=32, ge=4, le=512)
