"""The measured vector: its norm per patient is what privacy rests on."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.moments import EMPHASIS_RANGE, MomentLayout
from models.table import EncodedTable, one_hot

CARDS = (3, 2, 1, 7, 4)


def table_of(codes, offsets=None):
    return EncodedTable(codes, torch.arange(len(codes) + 1) if offsets is None else torch.tensor(offsets))


def random_codes(n, cards=CARDS, seed=0):
    source = torch.Generator().manual_seed(seed)
    return torch.stack([torch.randint(d, (n,), generator=source) for d in cards], 1)


def some_emphasis(columns, seed=0):
    """Weights of pairs that differ by as much as they may."""
    source = torch.Generator().manual_seed(seed)
    least, most = (torch.tensor(bound).log() for bound in EMPHASIS_RANGE)
    drawn = (least + (most - least) * torch.rand(columns, columns, generator=source)).exp().triu(1)
    return (drawn + drawn.T).double().clamp(*EMPHASIS_RANGE).fill_diagonal_(1.0)


@pytest.mark.parametrize("emphasised", [False, True])
@pytest.mark.parametrize("label", [None, 0, 1, 3])
def test_every_single_record_has_exactly_the_declared_norm(label, emphasised):
    layout = MomentLayout((3, 2, 2, 4), label)
    if emphasised:
        layout = layout.emphasised(some_emphasis(4))
    for record in itertools.product(*(range(d) for d in layout.cardinalities)):
        norm = layout.sum(table_of(torch.tensor([record]))).norm()
        assert norm == pytest.approx(layout.sensitivity, rel=1e-12)


@settings(max_examples=50, deadline=None)
@given(
    cards=st.lists(st.integers(1, 9), min_size=1, max_size=7),
    records=st.integers(1, 6),
    seed=st.integers(0, 999),
    label=st.none() | st.integers(0, 6),
    emphasised=st.booleans(),
)
def test_adding_a_patient_with_any_records_moves_the_sum_by_at_most_the_sensitivity(
    cards, records, seed, label, emphasised
):
    layout = MomentLayout(cards, label if label is not None and label < len(cards) else None)
    if emphasised:
        layout = layout.emphasised(some_emphasis(len(cards), seed))
    others, patient = random_codes(9, cards, seed), random_codes(records, cards, seed + 1)
    without = layout.sum(table_of(others))
    joined = layout.sum(table_of(torch.cat([others, patient]), [*range(10), 9 + records]))
    assert (joined - without).norm() <= layout.sensitivity * (1 + 1e-9)
    assert layout.sensitivity == pytest.approx((len(cards) * (len(cards) + 1) / 2) ** 0.5)


@pytest.mark.parametrize("label", [None, 1])
def test_sums_of_disjoint_tables_add_up(label):
    layout, codes = MomentLayout(CARDS, label), random_codes(400)
    parts = layout.sum(table_of(codes[:150])) + layout.sum(table_of(codes[150:]))
    torch.testing.assert_close(parts, layout.sum(table_of(codes)))


def test_the_vector_gives_back_counts_and_interactions():
    layout, codes = MomentLayout(CARDS), random_codes(1_000)
    hot = one_hot(codes, CARDS).double()
    found = layout.read(layout.sum(table_of(codes)))
    torch.testing.assert_close(found.one_way, hot.sum(0))
    centred = hot - layout.centre
    torch.testing.assert_close(found.interactions, centred.T @ centred * layout.between)
    assert found.label_interactions.shape == (0, sum(CARDS), sum(CARDS))


@pytest.mark.parametrize("label", [0, 1, 4])
def test_pairs_are_contrasted_by_the_label(label):
    layout, codes = MomentLayout(CARDS, label), random_codes(1_000)
    centred = one_hot(codes, CARDS).double() - layout.centre
    found = layout.read(layout.sum(table_of(codes)))
    assert len(found.label_interactions) == CARDS[label] - 1
    for contrast, measured in zip(layout.contrasts, found.label_interactions, strict=True):
        expected = (centred * contrast[codes[:, label]][:, None]).T @ centred
        torch.testing.assert_close(measured, expected * layout.between_others)
    gram = layout.contrasts @ layout.contrasts.T
    torch.testing.assert_close(gram, torch.eye(CARDS[label] - 1, dtype=torch.float64))
    torch.testing.assert_close(layout.contrasts.sum(1), torch.zeros(CARDS[label] - 1, dtype=torch.float64))


def test_a_label_with_many_levels_or_one_is_measured_like_any_column():
    assert MomentLayout((6, 3), 0) == MomentLayout((6, 3))
    assert MomentLayout((1, 3), 0) == MomentLayout((1, 3))
    with pytest.raises(ValueError, match="label"):
        MomentLayout((2, 3), 2)


@pytest.mark.parametrize("emphasised", [False, True])
@pytest.mark.parametrize("label", [None, 1])
def test_what_is_read_can_be_written_again(label, emphasised):
    layout = MomentLayout(CARDS, label)
    if emphasised:
        layout = layout.emphasised(some_emphasis(len(CARDS)))
    vector = layout.sum(table_of(random_codes(300)))
    torch.testing.assert_close(layout.write(layout.read(vector)), vector)


@pytest.mark.parametrize("label", [None, 1])
def test_an_emphasis_changes_the_noise_of_a_pair_and_not_what_is_read(label):
    plain, table = MomentLayout(CARDS, label), table_of(random_codes(300))
    emphasis = torch.ones(5, 5, dtype=torch.float64)
    emphasis[0, 3] = emphasis[3, 0] = 4.0
    layout = plain.emphasised(emphasis)
    expected, found = plain.read(plain.sum(table)), layout.read(layout.sum(table))
    for name in ("one_way", "interactions", "label_interactions"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name))
    source = torch.Generator().manual_seed(0)
    draws = torch.randn(200, layout.size, generator=source, dtype=torch.float64)
    noise = torch.stack([layout.read(draw).interactions for draw in draws])
    # In cells, of a table (3, 7) and of one (3, 4), which centring leaves (2 / 3)(6 / 7) and (2 / 3)(3 / 4) of.
    close, far = noise[:, :3, 6:13].square().mean() / (6 / 7), noise[:, :3, 13:].square().mean() / (3 / 4)
    assert float((far / close).sqrt()) == pytest.approx(4, rel=0.05)
    assert layout.scale < plain.scale


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda e: e[:4], "shape"),
        (lambda e: e.index_put((torch.tensor(0), torch.tensor(3)), torch.tensor(2.0).double()), "symmetric"),
        (lambda e: e * float("nan"), "not a number"),
        (lambda e: -e, "outside"),
        (lambda e: e * 1e6, "outside"),
        (lambda e: e * 2, "diagonal"),
    ],
)
def test_an_emphasis_that_could_move_the_bound_is_refused(spoil, words):
    with pytest.raises(ValueError, match=words):
        MomentLayout(CARDS).emphasised(spoil(torch.ones(5, 5, dtype=torch.float64)))


def test_pair_tables_follow_from_margins_and_interactions():
    layout, codes = MomentLayout(CARDS), random_codes(1_000)
    found = layout.read(layout.sum(table_of(codes)))
    a, b = 0, 3
    first, second = (slice(layout.offsets[k], layout.offsets[k + 1]) for k in (a, b))
    rows, columns, total = found.one_way[first], found.one_way[second], found.one_way[first].sum()
    rebuilt = found.interactions[first, second] + rows[:, None] / 7 + columns / 3 - total / 21
    counted = np.zeros((3, 7))
    np.add.at(counted, (codes[:, a], codes[:, b]), 1)
    np.testing.assert_allclose(rebuilt, counted, atol=1e-9)


@pytest.mark.parametrize("label", [None, 1])
def test_a_patient_with_many_records_counts_as_their_mean(label):
    layout, codes = MomentLayout(CARDS, label), random_codes(3)
    together = layout.sum(table_of(codes, [0, 3]))
    mean = torch.stack([layout.sum(table_of(code[None])) for code in codes]).mean(0)
    torch.testing.assert_close(together, mean)


def test_chunks_do_not_change_the_sum(monkeypatch):
    layout, codes = MomentLayout(CARDS, 4), random_codes(1_000)
    table = table_of(codes, [0, *range(2, 1_001)])
    whole = layout.sum(table)
    monkeypatch.setattr("models.moments._CHUNK_CELLS", 20)
    torch.testing.assert_close(layout.sum(table), whole)


def test_a_table_or_vector_of_another_schema_is_refused():
    layout = MomentLayout(CARDS)
    with pytest.raises(ValueError, match="columns"):
        layout.sum(table_of(random_codes(5, (3, 2))))
    with pytest.raises(ValueError, match="this layout needs"):
        layout.read(torch.zeros(3, dtype=torch.float64))


@pytest.mark.parametrize("label", [None, 0])
def test_a_wide_table_is_summed_as_exactly_as_a_narrow_one(label):
    wide = (2, 4, 8, 16, 24) * 20  # so wide that records are multiplied instead of counted
    layout, codes = MomentLayout(wide, label), random_codes(300, wide)
    norm = layout.sum(table_of(codes[:1])).norm()
    assert norm == pytest.approx(layout.sensitivity, rel=1e-11)  # of a million cells
    vector = layout.sum(table_of(codes))
    # The same records twice at every patient count one half each, and those are counted.
    twice = layout.sum(table_of(codes.repeat_interleave(2, 0), list(range(0, 601, 2))))
    torch.testing.assert_close(vector, twice, rtol=0, atol=1e-9)
    centred = one_hot(codes, wide).double() - layout.centre
    torch.testing.assert_close(layout.read(vector).interactions, centred.T @ centred * layout.between)
