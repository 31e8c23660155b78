"""The images' features: bounded by construction, the same everywhere, differentiable, for every form of image."""

import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch.nn import functional

from models.image_features import ImageFeatures, public_normals
from models.image_schema import ImageSchema

FORMS = [(8, 1), (12, 3), (28, 1), (32, 3), (44, 1), (64, 3)]


def schema_of(size, channels=1):
    return ImageSchema(size=size, channels=channels, conditioned_on=("digit",))


@pytest.fixture(scope="module")
def features():
    return ImageFeatures.of(schema_of(28))


@pytest.mark.parametrize(("size", "channels"), FORMS)
def test_every_form_of_image_has_finite_features_within_the_bound(size, channels):
    found = ImageFeatures.of(schema_of(size, channels))
    images = torch.rand(3, channels, size, size)
    images[0], images[1] = 0.0, 1.0
    rows = found(images)
    assert rows.shape == (3, found.size)
    assert bool(torch.isfinite(rows).all())
    assert bool((rows.norm(dim=1) <= found.max_norm * (1 + 1e-5)).all())


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from(["binary", "noise", "one pixel", "bright"]))
def test_no_image_exceeds_the_bound(seed, kind):
    source = torch.Generator().manual_seed(seed)
    image = torch.rand(1, 1, 28, 28, generator=source)
    if kind == "binary":
        image = image.round()
    elif kind == "one pixel":
        image = (image == image.max()).float()
    elif kind == "bright":
        image = 1 - 0.01 * image
    found = _shared()
    assert float(found(image).norm()) <= found.max_norm * (1 + 1e-5)


_KEPT = {}


def _shared():
    return _KEPT.setdefault("features", ImageFeatures.of(schema_of(28)))


def test_features_are_the_same_in_another_process_whatever_torch_was_seeded_with(features):
    image = (torch.arange(784).reshape(1, 1, 28, 28) % 7).float() / 6
    program = (
        "import torch; torch.manual_seed(99); torch.rand(5); torch.set_num_threads(1)\n"
        "from models.image_features import ImageFeatures; from models.image_schema import ImageSchema\n"
        "f = ImageFeatures.of(ImageSchema(size=28, conditioned_on=('digit',)))\n"
        "print(*f((torch.arange(784).reshape(1, 1, 28, 28) % 7).float() / 6)[0, ::97].tolist())"
    )
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    there = torch.tensor([float(value) for value in told.stdout.split()])
    torch.testing.assert_close(features(image)[0, ::97], there, rtol=0, atol=1e-6)


def test_public_directions_are_these_numbers_in_every_version():
    torch.testing.assert_close(public_normals((4,)), torch.tensor(PINNED), rtol=0, atol=1e-6)
    assert not torch.equal(public_normals((4,)), public_normals((4,), stream=1))


PINNED = [0.9737143, -0.7205825, 1.0462775, -0.2001967]


@pytest.mark.parametrize(("size", "channels"), FORMS)
def test_features_are_what_the_formula_says(size, channels):
    """Plain convolutions of one image after the other, whatever the product does to be fast."""
    found = ImageFeatures.of(schema_of(size, channels))
    images = torch.rand(4, channels, size, size, generator=torch.Generator().manual_seed(size))
    found._at_once = 3  # so that four images go through in two parts
    expected = torch.cat([formula(found, image[None].double()) for image in images])
    torch.testing.assert_close(found(images).double(), expected, rtol=0, atol=2e-5)


def formula(features, image):
    def moduli(maps, stride=1):
        found = functional.conv2d(maps, features.wavelets.double(), padding=3, stride=stride)
        return (found[:, :8] ** 2 + found[:, 8:] ** 2 + 1e-8).sqrt()

    def pooled(maps):
        side = maps.shape[-1]
        return functional.adaptive_avg_pool2d(maps, features.grid if side > features.grid else side)

    level = torch.einsum("oc,bchw->bohw", features.opponents.double(), image)
    parts = [pooled(level).flatten()]
    for depth in range(features.num_levels):
        first = moduli(level.transpose(0, 1))
        parts.append(pooled(first).flatten())
        if depth + 1 < features.num_levels:
            halves = functional.avg_pool2d(first[:1], 2).transpose(0, 1)
            parts.append(0.7 * pooled(moduli(halves, stride=2)).flatten())
            level = functional.avg_pool2d(level, 2)
    p = torch.cat(parts)
    p = p / (p.square().sum() + 4).sqrt()
    phases = p @ features.directions.double()
    return torch.cat([p, phases.cos() / 1500**0.5, phases.sin() / 1500**0.5])[None]


def test_features_are_computed_where_the_images_are():
    """A tensor that stayed on the CPU would raise; the meta device stands for a GPU."""
    images = torch.zeros(2, 3, 32, 32, device="meta")
    assert ImageFeatures.of(schema_of(32, 3)).to("meta")(images).device.type == "meta"


def test_making_features_leaves_torchs_own_generator_alone():
    before = torch.get_rng_state()
    ImageFeatures.of(schema_of(8))
    assert torch.equal(torch.get_rng_state(), before)


def test_gradients_reach_the_image(features):
    image = torch.rand(2, 1, 28, 28, requires_grad=True)
    features(image).square().sum().backward()
    assert bool(torch.isfinite(image.grad).all())
    assert float(image.grad.abs().sum()) > 0


def test_a_black_image_has_a_finite_gradient(features):
    image = torch.zeros(1, 1, 28, 28, requires_grad=True)
    features(image).sum().backward()
    assert bool(torch.isfinite(image.grad).all())


def test_brighter_and_shifted_images_differ(features):
    image = torch.zeros(1, 1, 28, 28)
    image[..., 8:20, 12:15] = 1
    base = features(image)
    assert float((features(0.5 * image) - base).norm()) > 0.05
    assert float((features(image.roll(4, dims=-1)) - base).norm()) > 0.05


@pytest.mark.parametrize("size", [4, 30, 68])
def test_sizes_that_cannot_be_halved_twice_or_are_too_large_are_refused(size):
    with pytest.raises(ValidationError, match="size"):
        schema_of(size)


def test_a_column_named_twice_is_refused():
    with pytest.raises(ValidationError, match="twice"):
        ImageSchema(conditioned_on=("digit", "digit"))
