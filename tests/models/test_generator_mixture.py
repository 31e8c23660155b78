"""The mixture of products."""

import pytest
import torch

from models.generator import GeneratorError, MixtureGenerator
from models.table import one_hot
from models.weights import decode_arrays, encode_arrays


def test_samples_have_the_exact_moments(generator):
    codes = generator.sample_codes(400_000, generator=torch.Generator().manual_seed(0))
    hot = one_hot(codes, generator.cardinalities)
    assert (hot.T @ hot / len(hot) - generator.moments()).abs().max() < 0.005


def test_every_table_of_a_pair_sums_to_one(generator):
    moments = generator.moments().detach()
    blocks = [
        block
        for rows in moments.split(generator.cardinalities)
        for block in rows.split(generator.cardinalities, 1)
    ]
    torch.testing.assert_close(torch.stack([b.sum() for b in blocks]), torch.ones(len(blocks)))


def test_the_same_state_of_randomness_gives_the_same_codes(generator):
    first, second = (
        generator.sample_codes(1_000, generator=torch.Generator().manual_seed(5)) for _ in range(2)
    )
    other = generator.sample_codes(1_000, generator=torch.Generator().manual_seed(6))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_a_level_of_probability_zero_is_never_drawn():
    logits = torch.tensor([[0.0, -torch.finfo().max, 0.0, 0.0, -torch.finfo().max]])
    generator = MixtureGenerator(logits, torch.zeros(1), (3, 2))
    codes = generator.sample_codes(50_000, generator=torch.Generator().manual_seed(0))
    assert set(codes[:, 0].tolist()) == {0, 2}
    assert set(codes[:, 1].tolist()) == {0}


def test_weights_survive_the_wire(generator):
    arrays = decode_arrays(encode_arrays(generator.to_arrays()))
    again = MixtureGenerator.from_arrays(arrays, generator.cardinalities)
    assert torch.equal(again.moments(), generator.moments())


@pytest.mark.parametrize(
    "break_it",
    [
        lambda arrays: arrays.pop("logits"),
        lambda arrays: arrays.update(logits=arrays["logits"][:, :-1]),
        lambda arrays: arrays.update(component_logits=arrays["component_logits"][:-1]),
        lambda arrays: arrays["logits"].__setitem__((0, 0), float("nan")),
        lambda arrays: arrays["component_logits"].__setitem__(0, float("inf")),
    ],
)
def test_arrays_that_are_no_generator_are_refused(generator, break_it):
    arrays = generator.to_arrays()
    break_it(arrays)
    with pytest.raises(GeneratorError):
        MixtureGenerator.from_arrays(arrays, generator.cardinalities)
