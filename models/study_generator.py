"""The generator of a study: rows from a mixture, and a picture for each row where the study has pictures.

What is released are its arrays, in one record; `fit_study` makes it from the sites' summed noisy vectors.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from models.anchor import Anchor, estimated_patients
from models.emphasis import emphasis_of
from models.encoding import codes_of
from models.generator import MixtureGenerator
from models.image_generator import ImageGenerator
from models.image_lens_training import train_lens
from models.image_targets import ImageTargets, looks_as_arrays, looks_from_arrays
from models.image_warm_start import fit_images
from models.measurement import EMPHASIS, Measurement
from models.moments import MomentLayout
from models.site_fit import SiteMoments
from models.study import Study
from models.warm_start import warm_start

Progress = Callable[[str, float], None]

PICTURES_AT_ONCE = 2_000
LENS_POOL, LENS_PICTURES = 20_000, 12_000
"""Rows drawn for the lens to learn from, and those of them that it sees pictures of."""
LENS_STEPS = 1200
"""Of the lens's training, at most; never more than the pictures are fitted with."""


@dataclass(frozen=True, kw_only=True)
class StudyGenerator:
    """Rows, and pictures that belong to them.

    Attributes:
        study: whose schema it follows.
        table: the rows' generator.
        image: the pictures'; None where the study has none.
    """

    study: Study
    table: MixtureGenerator
    image: ImageGenerator | None = None

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Tensor], study: Study) -> StudyGenerator:
        """Read what `to_arrays` gave.

        Raises:
            GeneratorError: the arrays are no generator of this study.
        """
        table = MixtureGenerator.from_arrays(arrays, study.table.cardinalities)
        image = None
        if study.image is not None:
            image = ImageGenerator.from_arrays(arrays, study.image, study.image.cardinalities_in(study.table))
        return cls(study=study, table=table, image=image)

    def to_arrays(self) -> dict[str, Tensor]:
        """All weights, for safetensors."""
        return {**self.table.to_arrays(), **({} if self.image is None else self.image.to_arrays())}

    def with_pictures(
        self, rows: pd.DataFrame, *, seed: int, chunk: int = 0
    ) -> Iterator[tuple[pd.DataFrame, np.ndarray | None]]:
        """Synthetic patients' rows, each with a picture where the study has pictures.

        Privacy: post-processing of a release.

        Args:
            rows: as `models.sampling` gives them.
            seed: the same rows, seed and chunk give the same pictures.
            chunk: number of this chunk of rows; each has pictures of its own.

        Yields:
            Rows in their order, in parts of at most `PICTURES_AT_ONCE` where there are pictures, and their
            pictures (N, C, H, W) uint8, or None.
        """
        if self.image is None:
            yield rows, None
            return
        codes = torch.from_numpy(codes_of(rows, self.study.table, self.image.schema.conditioned_on))
        for start in range(0, len(rows), PICTURES_AT_ONCE):
            words = [abs(seed), int(seed < 0), chunk, start]
            stream = int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0] >> np.uint64(1))
            part = slice(start, start + PICTURES_AT_ONCE)
            yield rows.iloc[part], self.image.sample(codes[part], seed=stream).numpy()


@dataclass(frozen=True, kw_only=True)
class FittedStudy:
    """What the coordinator makes of the measured vectors.

    Attributes:
        generator: the fitted one.
        anchor: what was measured so far, for a later fit: the table's noisy frequencies as `anchor`, and what the
            pictures were fitted to.
        scores: how the generator fits the noisy moments.
        by_site: whether each site has a part of it of its own.
    """

    generator: StudyGenerator
    anchor: dict[str, Tensor]
    scores: dict[str, float]
    by_site: bool = False


def fit_study(
    study: Study,
    noisy_sum: Tensor,
    *,
    noise_std: float,
    measurement: Measurement | None = None,
    earlier: Mapping[str, Tensor] | None = None,
    sites: Sequence[SiteMoments] = (),
    progress: Progress | None = None,
    seed: int = 0,
) -> FittedStudy:
    """Fit a generator to the sites' noisy vectors.

    Privacy: post-processing of what the sites released; costs nothing.

    Args:
        study: its settings and schema.
        noisy_sum: (size,) float64, the sites' vectors added up.
        noise_std: standard deviation of the noise in one entry of `noisy_sum`, all sites' noise together.
        measurement: what was measured; the study's first exchange if None.
        earlier: what the exchange before this one left: its generator's arrays and its anchor's, as they were kept.
        sites: what each site told of its table, where that may be looked at on its own.
        progress: called with what is being fitted ("table" or "images") and the done part of it.
        seed: of first weights.

    Raises:
        AnchorError, ImageFitError: the moments are not finite, or tell of no patients.
        GeneratorError, LensError: what the exchange before left is of another study.
    """
    measurement = measurement or Measurement.of(study)
    moments, pictures = measurement.split(noisy_sum)
    told = progress or (lambda _what, _done: None)
    fitted = warm_start(
        study,
        moments,
        noise_std=noise_std,
        layout=measurement.table,
        earlier=None
        if earlier is None
        else Anchor.from_tensor(MomentLayout.of(study.table.measured), earlier["anchor"]),
        sites=sites,
        progress=lambda done: told("table", done),
        seed=seed,
    )
    rows, anchor = fitted.generator, {"anchor": fitted.anchor}
    image = None
    if study.image is not None and measurement.image is not None and pictures is not None:
        num_patients = estimated_patients(measurement.table, moments)
        one_way = rows.one_way().detach().double().split(study.table.cardinalities)
        looks = [] if earlier is None else looks_from_arrays(earlier, study.table, study.image)
        looks.append(
            ImageTargets.from_sum(
                measurement.image,
                pictures,
                [one_way[place] * num_patients for place in measurement.image_places],
                noise_std=noise_std / measurement.image_scale,
            )
        )
        image = fit_images(
            looks,
            settings=study.warm_start.image,
            joint_codes=lambda n, source: _joint_codes(study, rows, n, source),
            start=None if earlier is None else StudyGenerator.from_arrays(earlier, study).image,
            steps=math.ceil(study.warm_start.image.steps / study.measure.exchanges),
            progress=lambda done: told("images", done),
            seed=seed,
        )
        anchor |= looks_as_arrays(looks)
    generator = StudyGenerator(study=study, table=rows, image=image)
    return FittedStudy(generator=generator, anchor=anchor, scores=fitted.scores(), by_site=fitted.by_site)


def base_of_next_exchange(
    generator: StudyGenerator, *, progress: Progress | None = None, seed: int = 0
) -> dict[str, Tensor]:
    """What the sites start from when they measure again: how much each pair of columns weighs, and a lens.

    Privacy: follows from the generator, which is post-processing of what the sites released; costs nothing.

    Args:
        generator: fitted to what was measured so far.
        progress: called with "lens" and the done part of its training.
        seed: of the pictures that the lens learns from, and of its first weights.
    """
    study, base = generator.study, {EMPHASIS: emphasis_of(generator.table)}
    if study.image is None or generator.image is None:
        return base
    source = torch.Generator().manual_seed(seed)
    pool = _joint_codes(study, generator.table, LENS_POOL, source)
    # Each column's categories in about equal numbers, so that the rare ones are told apart as well.
    rarity = sum(1 / column.bincount()[column].double() for column in pool.T)
    assert isinstance(rarity, Tensor)
    codes = pool[rarity.multinomial(LENS_PICTURES, replacement=True, generator=source)]
    lens = train_lens(
        study.image,
        generator.image.cardinalities,
        generator.image.sample(codes, seed=seed),
        codes,
        steps=min(LENS_STEPS, study.warm_start.image.steps),
        progress=lambda done: progress("lens", done) if progress else None,
        seed=seed,
    )
    return base | lens.to_arrays()


def _joint_codes(study: Study, rows: MixtureGenerator, count: int, source: torch.Generator) -> Tensor:
    """Categories of the columns that the pictures depend on, as they come together in rows: (count, columns)."""
    assert study.image is not None
    return rows.sample_codes(count, generator=source)[:, list(study.image.columns_in(study.table))]
