"""Rows and pictures of one study: one vector measured, one generator released."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.generator import GeneratorError
from models.image_lens import ImageLens
from models.image_targets import looks_from_arrays
from models.measurement import Measurement, base_of
from models.sampling import sample_cohort
from models.study import Study, StudyError
from models.study_generator import StudyGenerator, base_of_next_exchange, fit_study
from models.table import EncodedTable
from models.weights import decode_arrays, encode_arrays


def picture_study(**image) -> Study:
    return Study.from_dict(
        {
            "name": "pictures",
            "privacy": {"epsilon": 10.0, "delta": 1e-5},
            "table": {
                "columns": [
                    {"name": "finding", "kind": "categorical", "categories": ["dark", "light"]},
                    {"name": "age", "kind": "integer", "minimum": 0, "maximum": 99, "bins": 4},
                ],
                "label": "finding",
                "patient_id": "patient",
                "max_records_per_patient": 3,
            },
            "image": {"size": 8, "conditioned_on": ["finding"], **image},
            "measure": {"noise_multiplier": 0.5},
            "warm_start": {"image": {"steps": 150, "batch_size": 64, "latent": 8, "width": 8}},
        }
    )


def records(num_patients: int, *, seed: int = 0, most: int = 1) -> EncodedTable:
    """Pictures whose left half is bright where the finding is light, else the right half."""
    rng = np.random.default_rng(seed)
    counts = rng.integers(1, most + 1, num_patients)
    total = int(counts.sum())
    codes = np.stack([rng.integers(0, 2, total), rng.integers(0, 4, total)], axis=1)
    images = rng.integers(0, 40, (total, 1, 8, 8)).astype(np.uint8)
    for row, finding in enumerate(codes[:, 0]):
        images[row, 0, :, slice(0, 4) if finding else slice(4, 8)] += 200
    return EncodedTable(
        codes=torch.from_numpy(codes),
        patient_offsets=torch.from_numpy(np.concatenate([[0], counts.cumsum()]).astype(np.int64)),
        images=torch.from_numpy(images),
    )


def pictures_of(generator: StudyGenerator, rows: pd.DataFrame, **draw: int) -> np.ndarray:
    return np.concatenate([pictures for _, pictures in generator.with_pictures(rows, **draw)])


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31), num_patients=st.integers(2, 6), share=st.sampled_from([0.05, 0.3, 0.9]))
def test_one_patient_moves_the_whole_vector_by_the_declared_norm_at_most(seed, num_patients, share):
    study = picture_study(conditioned_on=["finding", "age"])
    study = study.model_copy(update={"measure": study.measure.model_copy(update={"table_share": share})})
    measurement = Measurement.of(study)
    everyone = records(num_patients, seed=seed, most=3)
    without = everyone.select(torch.arange(num_patients - 1))
    moved = (measurement.sum(everyone) - measurement.sum(without)).norm()
    assert moved <= study.sensitivity * (1 + 1e-5)


def test_the_vector_splits_into_what_was_measured():
    measurement = Measurement.of(picture_study())
    table = records(20)
    moments, pictures = measurement.split(measurement.sum(table))
    assert torch.equal(moments, measurement.table.sum(table))
    exact = measurement.image.sum(table.images, table.codes[:, :1], table.patient_offsets)
    torch.testing.assert_close(pictures, exact)
    with pytest.raises(ValueError, match="this study measures"):
        measurement.split(torch.zeros(3))
    with pytest.raises(ValueError, match="the records have no images"):
        measurement.sum(EncodedTable(codes=table.codes, patient_offsets=table.patient_offsets))


@pytest.fixture(scope="module")
def fitted():
    study = picture_study()
    exact = Measurement.of(study).sum(records(800))
    noise = torch.randn(len(exact), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    told = []
    found = fit_study(
        study,
        exact + 0.5 * study.sensitivity * noise,
        noise_std=0.5 * study.sensitivity,
        progress=lambda what, done: told.append((what, done)),
    )
    assert {what for what, _ in told} == {"table", "images"}
    assert told[-1] == ("images", 1.0)
    return found


@pytest.fixture(scope="module")
def twice():
    """Two exchanges; what the first left, and what was made of both."""
    study = picture_study()
    study = study.model_copy(update={"measure": study.measure.model_copy(update={"exchanges": 2})})
    kept, told = None, []
    for _ in range(2):
        measurement = Measurement.of(study, None if kept is None else base_of(kept))
        noise = torch.randn(measurement.size, dtype=torch.float64)
        found = fit_study(
            study,
            measurement.sum(records(800)) + 0.5 * study.sensitivity * noise,
            noise_std=0.5 * study.sensitivity,
            measurement=measurement,
            earlier=kept,
        )
        first, kept = kept, found.generator.to_arrays() | found.anchor
        if first is None:
            base = base_of_next_exchange(found.generator, progress=lambda *done: told.append(done))
            kept |= base
    assert told[-1] == ("lens", 1.0)
    return study, first, found


def test_a_later_exchange_looks_through_a_lens_and_the_fit_keeps_both_looks(twice):
    study, first, found = twice
    assert {name.partition(".")[0] for name in base_of(first)} == {"emphasis", "lens"}
    looks = looks_from_arrays(found.anchor, study.table, study.image)
    assert [type(look.layout.features).__name__ for look in looks] == ["ImageFeatures", "ImageLens"]
    again = looks_from_arrays(decode_arrays(encode_arrays(found.anchor)), study.table, study.image)
    for one, other in zip(looks, again, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one.means, other.means, strict=True))
    assert torch.equal(looks[0].means[0], looks_from_arrays(first, study.table, study.image)[0].means[0])
    assert not base_of(found.anchor)  # none follows


def test_a_later_fit_still_shows_what_rows_say(twice):
    study, _, found = twice
    rows = pd.concat(sample_cohort(found.generator.table, study.table, 200, seed=5))
    pictures = pictures_of(found.generator, rows, seed=5).astype(float)
    left = pictures[:, 0, :, :4].mean((1, 2)) > pictures[:, 0, :, 4:].mean((1, 2))
    assert (left == (rows["finding"] == "light").to_numpy()).mean() > 0.95


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**31), num_patients=st.integers(2, 6), weight=st.sampled_from([0.05, 1.0, 20.0]))
def test_one_patient_moves_a_later_vector_by_the_declared_norm_at_most(seed, num_patients, weight):
    study = picture_study(conditioned_on=["finding", "age"])
    emphasis = torch.tensor([[1.0, weight], [weight, 1.0]], dtype=torch.float64)
    measurement = Measurement.of(study, {"emphasis": emphasis, **ImageLens(study.image).to_arrays()})
    everyone = records(num_patients, seed=seed, most=3)
    without = everyone.select(torch.arange(num_patients - 1))
    moved = (measurement.sum(everyone) - measurement.sum(without)).norm()
    assert moved <= study.sensitivity * (1 + 1e-5)


def test_pictures_may_be_measured_again_but_not_refined():
    definition = picture_study().to_dict()
    again = Study.from_dict({**definition, "measure": {**definition["measure"], "exchanges": 2}})
    assert [again.phase_of(number) for number in (1, 2)] == ["measure", "measure"]
    refined = {**definition["refine"], "rounds": 3}
    share = {**definition["measure"], "budget_share": 0.5}
    with pytest.raises(StudyError, match=r"refine.rounds is 3.*measure.exchanges = 2"):
        Study.from_dict({**definition, "measure": share, "refine": refined})


def test_a_base_without_its_lens_or_with_more_is_refused():
    study = picture_study()
    emphasis = {"emphasis": torch.ones(2, 2, dtype=torch.float64)}
    with pytest.raises(ValueError, match="lens arrays"):
        Measurement.of(study, emphasis)
    lens = ImageLens(study.image).to_arrays()
    with pytest.raises(ValueError, match="starts from"):
        Measurement.of(study, lens)
    with pytest.raises(ValueError, match="starts from"):
        Measurement.of(study, {**emphasis, **lens, "generator": torch.zeros(1)})


def test_pictures_belong_to_their_rows(fitted):
    rows = pd.concat(sample_cohort(fitted.generator.table, fitted.generator.study.table, 200, seed=5))
    pictures = pictures_of(fitted.generator, rows, seed=5)
    assert pictures.shape == (200, 1, 8, 8)
    left = pictures[:, 0, :, :4].mean((1, 2)) > pictures[:, 0, :, 4:].mean((1, 2))
    assert (left == (rows["finding"] == "light").to_numpy()).mean() > 0.95


def test_the_same_seed_gives_the_same_pictures_and_another_chunk_others(fitted):
    rows = pd.concat(sample_cohort(fitted.generator.table, fitted.generator.study.table, 30, seed=5))
    first = pictures_of(fitted.generator, rows, seed=5)
    assert (pictures_of(fitted.generator, rows, seed=5) == first).all()
    assert (pictures_of(fitted.generator, rows, seed=5, chunk=1) != first).any()
    assert (pictures_of(fitted.generator, rows, seed=6) != first).any()


def test_parts_hold_all_rows_in_their_order(fitted, monkeypatch):
    monkeypatch.setattr("models.study_generator.PICTURES_AT_ONCE", 7)
    rows = pd.concat(sample_cohort(fitted.generator.table, fitted.generator.study.table, 30, seed=5))
    parts = list(fitted.generator.with_pictures(rows, seed=1))
    assert [len(part) for part, _ in parts] == [7, 7, 7, 7, 2] == [len(pictures) for _, pictures in parts]
    pd.testing.assert_frame_equal(pd.concat([part for part, _ in parts]), rows)


def test_the_released_arrays_are_the_generator(fitted):
    study = fitted.generator.study
    arrays = decode_arrays(encode_arrays(fitted.generator.to_arrays()))
    again = StudyGenerator.from_arrays(arrays, study)
    rows = pd.concat(sample_cohort(again.table, study.table, 30, seed=5))
    assert (pictures_of(again, rows, seed=1) == pictures_of(fitted.generator, rows, seed=1)).all()
    only_rows = {name: array for name, array in arrays.items() if not name.startswith("image.")}
    with pytest.raises(GeneratorError, match="image"):
        StudyGenerator.from_arrays(only_rows, study)


def test_the_guides_study_can_be_used():
    page = Path(__file__).parents[2] / "docs" / "pictures.md"
    study = Study.from_toml(page.read_text().partition("```toml\n")[2].partition("```")[0])
    assert study.modality == "table and image"
    assert Measurement.of(study).image.cardinalities == (2, 5)
