"""The images' moments: what one patient can change, and how patients with many images count."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.image_moments import ImageMomentLayout, bounded_rows
from models.image_schema import ImageSchema
from models.schema import StudySchema

COLUMNS = [
    {"kind": "categorical", "name": "digit", "categories": ["a", "b", "c"]},
    {"kind": "integer", "name": "age", "minimum": 0, "maximum": 89, "bins": 4},
    {"kind": "boolean", "name": "smoker"},
]
TABLE = StudySchema.model_validate_json(json.dumps({"columns": COLUMNS}))
IMAGE = ImageSchema(size=8, conditioned_on=("digit", "age"))
LAYOUT = ImageMomentLayout.of(TABLE, IMAGE)


def offsets_of(counts):
    return torch.tensor([0, *counts]).cumsum(0)


def patients(counts, seed):
    source = torch.Generator().manual_seed(seed)
    total = sum(counts)
    images = torch.randint(0, 256, (total, 1, 8, 8), generator=source).to(torch.uint8)
    codes = torch.stack([torch.randint(0, d, (total,), generator=source) for d in (3, 4)], 1)
    return images, codes, offsets_of(counts)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 6), min_size=1, max_size=5), st.integers(1, 40), st.integers(0, 2**31))
def test_one_more_patient_changes_the_sum_by_at_most_the_sensitivity(counts, more, seed):
    images, codes, offsets = patients([*counts, more], seed)
    kept = sum(counts)
    with_them = LAYOUT.sum(images, codes, offsets)
    without = LAYOUT.sum(images[:kept], codes[:kept], offsets_of(counts))
    assert float((with_them - without).norm()) <= LAYOUT.sensitivity * (1 + 1e-9)


def test_a_patient_with_one_category_comes_near_the_bound():
    images, codes, offsets = patients([1], 3)
    assert float(LAYOUT.sum(images, codes, offsets).norm()) > 0.6 * LAYOUT.sensitivity


def test_a_patients_images_share_one_unit_of_weight():
    images, codes, _ = patients([1], 3)
    once = LAYOUT.sum(images, codes, offsets_of([1]))
    many = LAYOUT.sum(images.repeat(7, 1, 1, 1), codes.repeat(7, 1), offsets_of([7]))
    torch.testing.assert_close(many, once, rtol=1e-4, atol=1e-6)


def test_images_are_measured_on_the_device_that_is_asked_for():
    """Everything is computed on the meta device, which stands for a GPU; only its sums cannot be copied back."""
    images, codes, offsets = patients([2, 1], 3)
    layout = ImageMomentLayout.of(TABLE, IMAGE)
    with pytest.raises(NotImplementedError, match="copy out of meta tensor"):
        layout.sum(images, codes, offsets, device=torch.device("meta"))
    assert layout.features.directions.device.type == "meta"


def test_images_of_different_categories_split_the_unit():
    images, codes, _ = patients([2], 5)
    codes[:, 0] = torch.tensor([0, 2])
    both = LAYOUT.sum(images, codes, offsets_of([2]))
    alone = LAYOUT.sum(images[:1], codes[:1], offsets_of([1]))
    torch.testing.assert_close(LAYOUT.block(both, 0)[0], LAYOUT.block(alone, 0)[0] / 2, rtol=1e-4, atol=1e-6)
    assert float(LAYOUT.block(both, 0)[1].norm()) == 0


def test_sums_of_disjoint_sites_add_up_across_batches(monkeypatch):
    images, codes, offsets = patients([3, 1, 4, 1, 5], 1)
    whole = LAYOUT.sum(images, codes, offsets)
    parts = LAYOUT.sum(images[:8], codes[:8], offsets[:4]) + LAYOUT.sum(
        images[8:], codes[8:], offsets_of([1, 5])
    )
    torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-6)
    monkeypatch.setattr("models.image_moments.BATCH_IMAGES", 3)  # patients lie across batches
    done = []
    torch.testing.assert_close(
        LAYOUT.sum(images, codes, offsets, progress=done.append), whole, rtol=1e-4, atol=1e-6
    )
    assert done == sorted(done)
    assert done[-1] == 1.0


def test_blocks_hold_the_means_of_their_category():
    images, codes, offsets = patients([1] * 12, 8)
    total = LAYOUT.sum(images, codes, offsets)
    for column, levels in enumerate((3, 4)):
        block = LAYOUT.block(total, column)
        assert block.shape == (levels, LAYOUT.features.size)
        for level in range(levels):
            members = images[codes[:, column] == level].float() / 255
            expected = (
                LAYOUT.features(members).sum(0).double() if len(members) else torch.zeros(block.shape[1])
            )
            torch.testing.assert_close(block[level], expected.double(), rtol=1e-4, atol=1e-4)


def test_rows_beyond_the_bound_or_not_finite_cannot_break_it():
    rows = torch.tensor([[3.0, 4.0], [float("nan"), 1.0], [float("inf"), 0.0], [0.3, 0.4], [0.0, 0.0]])
    kept = bounded_rows(rows, 1.0)
    assert kept.dtype == torch.float64
    assert bool((kept.norm(dim=1) <= 1 + 1e-12).all())
    torch.testing.assert_close(kept[0], torch.tensor([0.6, 0.8], dtype=torch.float64))
    torch.testing.assert_close(kept[3], torch.tensor([0.3, 0.4]).double())


def test_no_patients_sum_to_nothing():
    images, codes, offsets = patients([], 0)
    assert float(LAYOUT.sum(images, codes.view(0, 2), offsets).abs().sum()) == 0


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda i, c, o: (i.float(), c, o), "uint8"),
        (lambda i, c, o: (i[:, :, :4], c, o), "uint8 of shape"),
        (lambda i, c, o: (i, c[:, :1], o), "one row per image"),
        (lambda i, c, o: (i, c + 3, o), "outside its column"),
        (lambda i, c, o: (i, c, o[:-1]), "patient_offsets"),
    ],
)
def test_what_is_not_of_this_study_is_refused(change, says):
    with pytest.raises(ValueError, match=says):
        LAYOUT.sum(*change(*patients([2, 3], 4)))


def test_a_column_that_the_table_lacks_is_named():
    with pytest.raises(ValueError, match=r"\['stage'\].*'digit'"):
        ImageMomentLayout.of(TABLE, ImageSchema(conditioned_on=("stage",)))
