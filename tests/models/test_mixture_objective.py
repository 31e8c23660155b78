"""The fit's objective, written out by hand, is what the anchor and the penalty say, and so is its gradient."""

import pytest
import torch

from models.anchor import Anchor
from models.generator import MixtureGenerator
from models.mixture_objective import MixtureObjective
from models.moments import MomentLayout
from models.table import column_blocks

NARROW = (4, 3, 6, 2, 5)
WIDE = (2, 4, 8, 16, 24) * 18  # several blocks


def some_anchor(cardinalities, label, *, emphasised=False):
    source = torch.Generator().manual_seed(3)
    layout = MomentLayout(cardinalities, label)
    if emphasised:
        emphasis = 0.5 + 2 * torch.rand(len(cardinalities), len(cardinalities), generator=source)
        emphasis = (emphasis + emphasis.T).fill_diagonal_(2.0) / 2
        layout = layout.emphasised(emphasis)
    noisy = torch.randn(layout.size, generator=source, dtype=torch.float64)
    places, at = [], 0
    for levels in cardinalities:
        places += [1_000.0 / levels] * levels
        at += levels
    noisy[:at] += torch.tensor(places) * layout.scale
    return Anchor.from_sum(layout, 10 * noisy, noise_std=10.0)


def some_logits(cardinalities, components=7):
    source = torch.Generator().manual_seed(4)
    return 2 * torch.randn(components, sum(cardinalities), generator=source)


def information(generator):
    """Mutual information between the component and each column, in float64, as it is defined."""
    w, total = 1 / generator.num_components, torch.zeros((), dtype=torch.float64)
    for part in generator.logits.double().split(generator.cardinalities, 1):
        P = part.softmax(1)
        mean = P.mean(0)
        total = total + (w * P * (P / mean).log()).sum()
    return total


@pytest.mark.parametrize(
    ("cardinalities", "label", "emphasised", "label_weight"),
    [
        (NARROW, None, False, 1.0),
        (NARROW, 3, False, 1.0),
        (NARROW, 1, True, 1.0),  # a label of three levels
        (NARROW, 4, True, 3.0),
        (WIDE, 0, False, 1.0),
        (WIDE, 45, True, 2.0),
    ],
)
def test_value_and_gradient_are_those_of_the_anchor_and_the_penalty(
    cardinalities, label, emphasised, label_weight
):
    torch.set_num_threads(1)
    anchor = some_anchor(cardinalities, label, emphasised=emphasised)
    logits, shrinkage, unit = some_logits(cardinalities), 0.37, 1.9
    generator = MixtureGenerator(logits, torch.zeros(len(logits)), cardinalities)
    value = unit * (
        anchor.loss(generator, label_weight=label_weight).double() + shrinkage * information(generator)
    )
    value.backward()
    objective = MixtureObjective(anchor, shrinkage=shrinkage, label_weight=label_weight, unit=unit)
    found, gradient = objective(logits.T.contiguous())
    assert found == pytest.approx(value.item(), rel=1e-5)
    expected = generator.logits.grad
    assert float((gradient.T - expected).norm() / expected.norm()) < 1e-5


def test_the_penalty_may_be_left_out():
    anchor, logits = some_anchor(NARROW, 3), some_logits(NARROW)
    generator = MixtureGenerator(logits, torch.zeros(len(logits)), NARROW)
    found, _ = MixtureObjective(anchor, shrinkage=0.0)(logits.T.contiguous())
    assert found == pytest.approx(anchor.loss(generator).item(), rel=1e-5)


def test_blocks_hold_whole_columns_and_every_place_once():
    offsets = MomentLayout(WIDE).offsets
    blocks = column_blocks(WIDE)
    assert len(blocks) > 2
    assert [start for start, _ in blocks] == [0, *(end for _, end in blocks[:-1])]
    assert blocks[-1][1] == offsets[-1]
    assert {start for start, _ in blocks} <= set(offsets)
    assert column_blocks((4, 3)) == [(0, 7)]
