"""The image generator: arrays there and back, pictures that follow from the seed and the row alone."""

import pytest
import torch

from models.generator import GeneratorError
from models.image_generator import ImageGenerator, doubled
from models.image_schema import ImageSchema

SCHEMA = ImageSchema(size=12, channels=3, conditioned_on=("digit", "age"))
CARDINALITIES = (3, 4)
CODES = torch.tensor([[0, 3], [2, 0], [1, 1], [2, 2]])


@pytest.fixture
def generator():
    torch.manual_seed(1)
    made = ImageGenerator(SCHEMA, CARDINALITIES, latent=6, width=4)
    with torch.no_grad():  # running statistics that differ from the first ones
        for _ in range(3):
            made.images(CODES.repeat(8, 1))
    return made.eval()


@pytest.mark.parametrize(("size", "channels"), [(8, 1), (20, 1), (28, 3), (36, 1), (48, 3), (64, 1)])
def test_pictures_of_every_form_lie_between_0_and_1(size, channels):
    schema = ImageSchema(size=size, channels=channels, conditioned_on=("digit",))
    found = ImageGenerator(schema, (3,), latent=4, width=4).images(torch.tensor([[0], [2]]))
    assert found.shape == (2, channels, size, size)
    assert bool(((found >= 0) & (found <= 1)).all())


def test_doubling_is_the_convolution_of_repeated_pixels():
    maps, convolution = torch.randn(2, 5, 7, 7), torch.nn.Conv2d(5, 3, 3, padding=1)
    expected = convolution(torch.nn.functional.interpolate(maps, scale_factor=2))
    torch.testing.assert_close(doubled(maps, convolution), expected, rtol=1e-4, atol=1e-5)


def test_pictures_are_drawn_where_the_generator_is():
    """Rows and normals come from the CPU; the meta device stands for a GPU."""
    assert ImageGenerator(SCHEMA, CARDINALITIES).to("meta").images(CODES).device.type == "meta"


def test_arrays_give_back_the_same_pictures_and_carry_their_prefix(generator):
    arrays = generator.to_arrays()
    assert all(name.startswith("image.") for name in arrays)
    again = ImageGenerator.from_arrays({**arrays, "logits": torch.zeros(1)}, SCHEMA, CARDINALITIES)
    assert torch.equal(again.sample(CODES, seed=5), generator.sample(CODES, seed=5))
    assert {name: tuple(a.shape) for name, a in again.to_arrays().items()} == {
        name: tuple(a.shape) for name, a in arrays.items()
    }


def test_one_seed_gives_the_same_pictures_and_another_does_not(generator):
    assert torch.equal(generator.sample(CODES, seed=1), generator.sample(CODES, seed=1))
    assert not torch.equal(generator.sample(CODES, seed=1), generator.sample(CODES, seed=2))


def test_a_picture_does_not_depend_on_which_others_are_drawn_beside_it(generator):
    normals = torch.randn(4, 6)
    together = generator(CODES, normals)
    alone = torch.cat([generator(CODES[k : k + 1], normals[k : k + 1]) for k in range(4)])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)


def test_sampling_after_training_uses_the_running_statistics(generator):
    expected = generator.sample(CODES, seed=3)
    generator.train()
    assert torch.equal(generator.sample(CODES, seed=3), expected)


def test_categories_change_the_picture(generator):
    normals = torch.randn(1, 6).repeat(2, 1)
    first, second = generator(torch.tensor([[0, 0], [1, 0]]), normals)
    assert float((first - second).abs().max()) > 1e-3


def test_no_rows_give_no_pictures(generator):
    assert generator.sample(CODES[:0], seed=1).shape == (0, 3, 12, 12)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda a: a.pop("image.last.weight"),
        lambda a: a.pop("image.start.bias"),
        lambda a: a.update({"image.start.bias": torch.zeros(3)}),
        lambda a: a.update({"image.extra": torch.zeros(3)}),
        lambda a: a.update({"image.last.bias": torch.full((3,), float("nan"))}),
        lambda a: a.update({"image.start.weight": torch.zeros(4, 3)}),
    ],
)
def test_arrays_that_are_no_generator_of_this_study_are_refused(generator, spoil):
    arrays = generator.to_arrays()
    spoil(arrays)
    with pytest.raises(GeneratorError, match="image"):
        ImageGenerator.from_arrays(arrays, SCHEMA, CARDINALITIES)
