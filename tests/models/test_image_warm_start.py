"""The image fit: an unbiased gradient, pictures of the right category, and refusals."""

import contextlib
import json

import pytest
import torch

from models.image_generator import ImageGenerator
from models.image_moments import ImageMomentLayout
from models.image_schema import ImageFitSettings, ImageSchema
from models.image_targets import ImageFitError, ImageTargets
from models.image_warm_start import CodeBatches, MomentFit, fit_images
from models.schema import StudySchema

COLUMNS = [
    {"kind": "categorical", "name": "side", "categories": ["left", "right"]},
    {"kind": "boolean", "name": "tall"},
]
TABLE = StudySchema.model_validate_json(json.dumps({"columns": COLUMNS}))
IMAGE = ImageSchema(size=8, conditioned_on=("side", "tall"))
LAYOUT = ImageMomentLayout.of(TABLE, IMAGE)
SETTINGS = ImageFitSettings(steps=150, batch_size=32, learning_rate=5e-3, latent=4, width=8)
NUM_PATIENTS = 400


def joint_codes(n, source):
    return torch.stack([torch.randint(0, 2, (n,), generator=source) for _ in range(2)], 1)


def drawn(codes, source):
    """A bright bar on the left or right, over the whole height or half of it, a little blurred by chance."""
    images = 20 * torch.rand(len(codes), 1, 8, 8, generator=source)
    for image, (side, tall) in zip(images, codes.tolist(), strict=True):
        image[0, 0 if tall else 4 :, 6 * side : 6 * side + 2] += 200
    return images.to(torch.uint8)


@pytest.fixture(scope="module")
def measured():
    source = torch.Generator().manual_seed(0)
    codes = joint_codes(NUM_PATIENTS, source)
    moments = LAYOUT.sum(drawn(codes, source), codes, torch.arange(NUM_PATIENTS + 1))
    return moments, [codes[:, k].bincount(minlength=2).double() for k in range(2)]


def fit(measured, **changes):
    looks = [ImageTargets.from_sum(LAYOUT, *measured, noise_std=0.01)]
    arguments = {"settings": SETTINGS, "joint_codes": joint_codes, "seed": 0} | changes
    return fit_images(looks, **arguments)


def test_pictures_show_what_their_row_says(measured):
    done = []
    generator = fit(measured, progress=done.append)
    codes = torch.tensor([[side, tall] for side in (0, 1) for tall in (0, 1)]).repeat_interleave(50, 0)
    pictures = generator.sample(codes, seed=1).float()
    assert not generator.training
    left, right = pictures[..., :2].mean((1, 2, 3)), pictures[..., 6:].mean((1, 2, 3))
    assert float((right > left).eq(codes[:, 0] == 1).float().mean()) > 0.95
    top = pictures[:, 0, :4].amax((1, 2))
    assert float(top[codes[:, 1] == 1].mean()) > 1.5 * float(top[codes[:, 1] == 0].mean())
    assert done == sorted(done)
    assert done[-1] == 1.0


def test_one_seed_gives_one_generator_and_leaves_torchs_own_random_state_alone(measured):
    before = torch.get_rng_state()
    short = SETTINGS.model_copy(update={"steps": 3})
    first, second = fit(measured, settings=short), fit(measured, settings=short)
    assert torch.equal(torch.get_rng_state(), before)
    for name, array in first.to_arrays().items():
        torch.testing.assert_close(second.to_arrays()[name], array)


def test_a_later_fit_goes_on_from_the_generator_that_it_is_given(measured):
    first = fit(measured, settings=SETTINGS.model_copy(update={"steps": 40}))
    before = {name: array.clone() for name, array in first.to_arrays().items()}
    later = fit(measured, start=first, steps=2, seed=3)
    fresh = fit(measured, steps=2, seed=3)
    codes = torch.zeros(40, 2, dtype=torch.int64)
    shown, then, new = (one.sample(codes, seed=1).float() for one in (first, later, fresh))
    assert float((then - shown).abs().mean()) < 0.2 * float((new - shown).abs().mean())
    assert all(torch.equal(array, before[name]) for name, array in first.to_arrays().items())


def test_two_looks_weigh_alike_where_they_are_the_same(measured):
    one = fit(measured, settings=SETTINGS.model_copy(update={"steps": 3}))
    looks = 2 * [ImageTargets.from_sum(LAYOUT, *measured, noise_std=0.01)]
    two = fit_images(
        looks, settings=SETTINGS.model_copy(update={"steps": 3}), joint_codes=joint_codes, seed=0
    )
    for name, array in one.to_arrays().items():  # Adam's steps do not feel the factor of two
        torch.testing.assert_close(two.to_arrays()[name], array, rtol=0.05, atol=0.02)


def test_no_image_is_compared_with_itself(measured):
    """Where the generator's distribution is the measured one, the expected gradient is zero in any batch size."""
    moments, totals = measured
    targets = ImageTargets.from_sum(LAYOUT, moments, totals, noise_std=0.01)
    source = torch.Generator().manual_seed(4)
    codes = joint_codes(4000, source)
    features = LAYOUT.features(drawn(codes, source).float() / 255)
    batches = CodeBatches(codes, [targets], 8)
    biased, unbiased = [], []
    for _ in range(300):
        rows = [torch.randint(0, 4000, (4,), generator=source) for _ in range(2)]
        now, earlier = (features[picked].mean(0) for picked in rows)
        centre = features.mean(0)
        biased.append(((now - centre) @ now).item())
        unbiased.append(((earlier - centre) @ now).item())
    spread = float(torch.tensor(unbiased).std()) / 300**0.5
    assert abs(sum(unbiased) / 300) < 4 * spread
    assert sum(biased) / 300 > 10 * spread
    assert len(batches.draw(source)[0]) == 8


def test_the_first_step_only_looks(measured):
    moments, totals = measured
    targets = ImageTargets.from_sum(LAYOUT, moments, totals, noise_std=0.01)
    generator = ImageGenerator(IMAGE, (2, 2), latent=4, width=8)
    before = [weight.clone() for weight in generator.parameters()]
    source = torch.Generator().manual_seed(0)
    batches = CodeBatches(joint_codes(100, source), [targets], 16)
    state = MomentFit(generator, [targets], SETTINGS)
    state.step(batches.draw(source), source)
    assert all(torch.equal(a, b) for a, b in zip(before, generator.parameters(), strict=True))
    state.step(batches.draw(source), source)
    assert not all(torch.equal(a, b) for a, b in zip(before, generator.parameters(), strict=True))


def test_a_step_computes_on_the_generators_device(measured, monkeypatch):
    """A tensor that stayed on the CPU would raise; the meta device stands for a GPU (autocast does not know it)."""
    monkeypatch.setattr(torch, "autocast", lambda *_: contextlib.nullcontext())
    targets = ImageTargets.from_sum(ImageMomentLayout.of(TABLE, IMAGE), *measured, noise_std=0.01)
    source = torch.Generator().manual_seed(0)
    batches = CodeBatches(joint_codes(100, source), [targets], 16)
    state = MomentFit(ImageGenerator(IMAGE, (2, 2), latent=4, width=8).to("meta"), [targets], SETTINGS)
    for _ in range(2):
        state.step(batches.draw(source), source)


def test_categories_hidden_by_noise_do_not_count(measured):
    moments, totals = measured
    few = [torch.tensor([0.4, NUM_PATIENTS]).double(), totals[1]]
    targets = ImageTargets.from_sum(LAYOUT, moments, few, noise_std=0.01)
    assert targets.weights[0][0] == 0
    assert targets.weights[0][1] > 0
    assert bool(torch.isfinite(targets.means[0]).all())
    noisier = ImageTargets.from_sum(LAYOUT, moments, totals, noise_std=5.0)
    assert bool(
        (noisier.weights[1] < ImageTargets.from_sum(LAYOUT, moments, totals, noise_std=0.01).weights[1]).all()
    )


def test_batches_hold_each_category_of_each_column_in_equal_numbers():
    pool = torch.stack([torch.arange(100) % 2, torch.zeros(100, dtype=torch.int64)], 1)
    pool[0, 1] = 1  # a rare category
    targets = ImageTargets.from_sum(
        LAYOUT, torch.zeros(LAYOUT.size), [torch.full((2,), 50.0), torch.full((2,), 50.0)], noise_std=0.0
    )
    codes, places = CodeBatches(pool, [targets], 40).draw(torch.Generator().manual_seed(0))
    assert len(codes) == 40
    for column in range(2):
        assert codes[places == column, column].bincount(minlength=2).tolist() == [10, 10]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda m, t: (m[:-1], t), "finite values"),
        (lambda m, t: (m * float("nan"), t), "finite values"),
        (lambda m, t: (m, t[:1]), "class_totals"),
        (lambda m, t: (m, [-one for one in t]), "within the noise"),
    ],
)
def test_moments_that_no_generator_can_be_fitted_to_are_refused(measured, change, says):
    moments, totals = change(*measured)
    with pytest.raises(ImageFitError, match=says):
        fit((moments, totals))
