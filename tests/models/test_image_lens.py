"""The lens of a second exchange: bounded whatever it holds, refused where it is none, learnt from pictures alone."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.image_lens import ImageLens, LensError
from models.image_lens_training import train_lens, turned
from models.image_moments import ImageMomentLayout
from models.image_schema import ImageSchema

FORMS = [(8, 1), (12, 3), (28, 1), (44, 1), (64, 3)]
SMALL = ImageSchema(size=8, conditioned_on=("side",))


def bars(count, seed):
    """A bright bar on the left or on the right, and on which side."""
    source = torch.Generator().manual_seed(seed)
    codes = torch.arange(count)[:, None] % 2
    pictures = torch.randint(0, 60, (count, 1, 8, 8), generator=source)
    for picture, (side,) in zip(pictures, codes.tolist(), strict=True):
        picture[0, :, 5 * side : 5 * side + 2] += 180
    return pictures.to(torch.uint8), codes


@pytest.fixture(scope="module")
def learnt():
    return train_lens(SMALL, [2], *bars(400, 0), steps=80)


@pytest.mark.parametrize(("size", "channels"), FORMS)
def test_every_form_of_image_has_finite_features_within_the_bound(size, channels):
    lens = ImageLens(ImageSchema(size=size, channels=channels, conditioned_on=("side",)))
    images = torch.rand(3, channels, size, size)
    images[0], images[1] = 0.0, 1.0
    lens.settle(images)
    rows = lens(images)
    assert rows.shape == (3, lens.size)
    assert bool(torch.isfinite(rows).all())
    assert bool((rows.norm(dim=1) <= lens.max_norm * (1 + 1e-5)).all())


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    size=st.sampled_from([1e-20, 1.0, 1e10, 1e30]),
    scale=st.sampled_from([1e-30, 1.0, 1e30]),
    pictures=st.integers(1, 4),
)
def test_one_patient_moves_the_sum_by_the_declared_norm_at_most_whatever_the_lens(
    seed, size, scale, pictures
):
    source = torch.Generator().manual_seed(seed)
    lens = ImageLens(SMALL)
    arrays = {
        name: torch.full_like(array, scale)
        if name == "lens.scale"
        else size * torch.randn(array.shape, generator=source)
        for name, array in lens.to_arrays().items()
    }
    layout = ImageMomentLayout(SMALL, (2,), ImageLens.from_arrays(arrays, SMALL))
    images, codes = bars(pictures, seed)
    moved = layout.sum(images, codes, torch.tensor([0, pictures]))
    assert bool(torch.isfinite(moved).all())
    assert float(moved.norm()) <= layout.sensitivity * (1 + 1e-9)


def test_the_arrays_are_the_lens(learnt):
    again = ImageLens.from_arrays({**learnt.to_arrays(), "other": torch.zeros(1)}, SMALL)
    images = bars(5, 3)[0].float() / 255
    assert torch.equal(again(images), learnt(images))
    assert not any(weight.requires_grad for weight in again.parameters())


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"lens.scale": None}, "missing, unknown"),
        ({"lens.more": torch.zeros(2)}, "missing, unknown"),
        ({"lens.hidden.bias": torch.zeros(2)}, "hidden.bias"),
        ({"lens.hidden.bias": torch.full((128,), math.nan)}, "not finite"),
        ({"lens.hidden.bias": torch.zeros(128, dtype=torch.int64)}, "not finite"),
        ({"lens.scale": 0.0}, "not above 0"),
    ],
)
def test_a_lens_that_cannot_be_used_is_refused(learnt, change, says):
    arrays = learnt.to_arrays()
    for name, array in change.items():
        if array is None:
            del arrays[name]
        else:
            arrays[name] = array if isinstance(array, torch.Tensor) else torch.full_like(arrays[name], array)
    with pytest.raises(LensError, match=says):
        ImageLens.from_arrays(arrays, SMALL)


def test_it_tells_the_categories_apart(learnt):
    pictures, codes = bars(200, 1)
    images = pictures.float() / 255
    features = learnt(images)
    left, right = (features[codes[:, 0] == side] for side in (0, 1))
    apart = (left.mean(0) - right.mean(0)).norm()
    assert float(apart) > 0.3


def test_one_seed_gives_one_lens_and_leaves_torchs_own_random_state_alone():
    before = torch.get_rng_state()
    first, second = (train_lens(SMALL, [2], *bars(50, 0), steps=2, seed=4) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    for name, array in first.to_arrays().items():
        torch.testing.assert_close(second.to_arrays()[name], array)


def test_each_layer_has_the_same_share_of_what_differs_between_pictures(learnt):
    images = bars(400, 0)[0].float() / 255
    z = (torch.cat(learnt.layers(images), 1) - learnt.centre) / learnt.scale
    shares = [float(part.square().sum(1).mean()) for part in z.split(learnt.parts, 1)]
    assert shares == pytest.approx([0.25] * 4, rel=1e-3)


@pytest.mark.parametrize(("size", "channels"), FORMS)
def test_turned_pictures_are_pictures_of_about_the_same_brightness(size, channels):
    images = torch.rand(20, channels, size, size)
    made = turned(images)
    assert made.shape == images.shape
    assert 0 <= float(made.min()) <= float(made.max()) <= 1 + 1e-6
    assert float(made.mean()) == pytest.approx(float(images.mean()), abs=0.05)
    assert not torch.equal(made, images)
