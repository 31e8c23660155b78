"""The one-pass clip gives what Opacus' per-sample gradients give, for every layer it has a rule for."""

import pytest
import torch
from opacus import GradSampleModule
from opacus.optimizers import DPOptimizer
from torch import nn
from torch.nn import functional

from privacy.bookkeeping import BookKeepingClip, GradientSums
from privacy.module_checks import UnsupportedModuleError

torch.set_num_threads(1)


def scores_loss(output):
    return functional.softplus(-output.reshape(len(output), -1).mean(1))


def sequential(*layers):
    return lambda: nn.Sequential(*[make() for make in layers])


CASES = {
    "mlp": (
        sequential(
            lambda: nn.Linear(20, 32),
            lambda: nn.LeakyReLU(0.2),
            lambda: nn.Linear(32, 16),
            nn.Tanh,
            lambda: nn.Linear(16, 1),
        ),
        lambda n: torch.randn(n, 20),
    ),
    "mlp without bias": (
        sequential(lambda: nn.Linear(8, 9, bias=False), nn.ReLU, lambda: nn.Linear(9, 1, bias=False)),
        lambda n: torch.randn(n, 8),
    ),
    "layer norm": (
        sequential(lambda: nn.Linear(6, 12), lambda: nn.LayerNorm(12), nn.SiLU, lambda: nn.Linear(12, 1)),
        lambda n: torch.randn(n, 6),
    ),
    "linear over positions": (
        sequential(lambda: nn.Linear(5, 7), lambda: nn.LayerNorm((3, 7)), nn.Tanh, lambda: nn.Linear(7, 1)),
        lambda n: torch.randn(n, 3, 5),
    ),
    "linear over a grid of positions": (
        sequential(lambda: nn.Linear(5, 7), nn.Tanh, lambda: nn.Linear(7, 1)),
        lambda n: torch.randn(n, 2, 3, 5),
    ),
    "embedding with padding and repeated codes": (
        sequential(lambda: nn.Embedding(4, 6, padding_idx=0), nn.Flatten, lambda: nn.Linear(30, 1)),
        lambda n: torch.randint(0, 4, (n, 5)),
    ),
    "embedding of one code": (
        sequential(lambda: nn.Embedding(4, 6), lambda: nn.Linear(6, 1)),
        lambda n: torch.randint(0, 4, (n,)),
    ),
    "conv with group norm": (
        sequential(
            lambda: nn.Conv2d(3, 8, 4, 2, 1),
            lambda: nn.GroupNorm(2, 8),
            lambda: nn.LeakyReLU(0.2),
            lambda: nn.Conv2d(8, 6, 3, padding=1),
            nn.Flatten,
            lambda: nn.Linear(6 * 25, 1),
        ),
        lambda n: torch.randn(n, 3, 10, 10),
    ),
    "conv with unlike strides, padding and dilation": (
        sequential(
            lambda: nn.Conv2d(2, 5, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2), bias=False),
            nn.Tanh,
            nn.Flatten,
            lambda: nn.LazyLinear(1),
        ),
        lambda n: torch.randn(n, 2, 9, 8),
    ),
    "conv in groups": (
        sequential(lambda: nn.Conv2d(4, 6, 3, 2, 1, groups=2), nn.Tanh, nn.Flatten, lambda: nn.Linear(96, 1)),
        lambda n: torch.randn(n, 4, 8, 8),
    ),
}


def build(name):
    make, draw = CASES[name]
    torch.manual_seed(3)
    module, records = make(), draw(37)
    module(records[:2])  # gives lazy layers their shape
    return module, records


def opacus_clipped_sum(module, records, max_grad_norm):
    """Opacus as its own documentation uses it: hooks, DPOptimizer, no noise."""
    wrapped = GradSampleModule(module, loss_reduction="sum")
    optimizer = DPOptimizer(
        torch.optim.SGD(wrapped.parameters(), lr=1.0),
        noise_multiplier=0.0,
        max_grad_norm=max_grad_norm,
        expected_batch_size=None,
        loss_reduction="sum",
    )
    scores_loss(wrapped(records)).sum().backward()
    optimizer.pre_step()
    total = torch.cat([p.grad.flatten() for p in module.parameters()]).double()
    wrapped.to_standard_module()
    for p in module.parameters():
        p.grad = None
    return total


def clipped_sum(module, records, max_grad_norm, loss=scores_loss):
    clip = BookKeepingClip(module, max_grad_norm=max_grad_norm)
    sums = GradientSums(clip.parameters)
    clip.add_clipped_sum(records, loss, sums)
    return sums.flat


@pytest.mark.parametrize("max_grad_norm", [0.05, 0.5, 100.0])
@pytest.mark.parametrize("name", [n for n in CASES if "with padding" not in n])
@pytest.mark.filterwarnings("ignore:Full backward hook")
def test_agrees_with_opacus_hooks_to_a_hundred_thousandth(name, max_grad_norm):
    module, records = build(name)
    expected = opacus_clipped_sum(module, records, max_grad_norm)
    assert (clipped_sum(module, records, max_grad_norm) - expected).norm() <= 1e-5 * expected.norm()


@pytest.mark.parametrize(
    "name", CASES
)  # Opacus 1.6 gives gradients to an embedding's padding row, autograd none
def test_every_patient_alone_gets_autograds_own_gradient_clipped(name):
    module, records = build(name)
    for i in range(8):
        gradients = torch.autograd.grad(
            scores_loss(module(records[i : i + 1])).sum(), list(module.parameters())
        )
        expected = torch.cat([g.flatten() for g in gradients]).double()
        expected *= min(1.0, 0.05 / expected.norm())
        assert (clipped_sum(module, records[i : i + 1], 0.05) - expected).norm() <= 1e-5 * 0.05


@pytest.mark.parametrize("name", CASES)
def test_every_patient_alone_is_clipped_to_the_bound(name):
    module, records = build(name)
    for i in range(8):
        assert clipped_sum(module, records[i : i + 1], 0.01).norm() <= 0.01 * (1 + 1e-6)


@pytest.mark.parametrize("name", CASES)
def test_the_sum_over_a_batch_is_the_sum_over_its_patients(name):
    module, records = build(name)
    one_by_one = sum(clipped_sum(module, records[i : i + 1], 0.1) for i in range(len(records)))
    assert (clipped_sum(module, records, 0.1) - one_by_one).norm() <= 1e-5 * one_by_one.norm()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 1e38, -1e25])
@pytest.mark.parametrize("name", [n for n in CASES if "embedding" not in n])
def test_a_patient_beyond_the_number_range_adds_nothing_or_at_most_the_bound_and_spoils_no_other(name, bad):
    module, records = build(name)
    records[5].view(-1)[3] = bad
    others = torch.cat([records[:5], records[6:]])
    change = clipped_sum(module, records, 0.1) - clipped_sum(module, others, 0.1)
    assert change.norm() <= 0.1 * (1 + 1e-5)
    if not abs(bad) < float("inf"):
        assert change.norm() <= 1e-5


def test_the_clip_holds_where_positions_cancel_and_a_norm_from_gram_matrices_would_not():
    """49 nearly equal positions with signals that sum to nothing: their products are 7,000 times their sum."""
    torch.manual_seed(0)
    module = nn.Linear(576, 128, bias=False)
    records = torch.randn(1, 1, 576).repeat(1, 49, 1) + 1e-3 * torch.randn(1, 49, 576)
    signals = torch.randn(1, 49, 128) * 1e3
    signals -= signals.mean(1, keepdim=True)
    total = clipped_sum(module, records, 1.0, loss=lambda out: (out * signals).sum((1, 2)))
    assert 1 - 1e-4 < total.norm() <= 1 + 1e-5
    a, g = records[0], signals[0]
    gram = ((a @ a.t()) * (g @ g.t())).sum().clamp_min(0).sqrt()
    assert abs(gram / (g.double().t() @ a.double()).norm() - 1) > 1e-3


def test_a_loss_that_is_nan_for_one_patient_drops_that_patient_only():
    module, records = build("embedding with padding and repeated codes")
    marked = torch.zeros(len(records))
    marked[4] = float("nan")
    others = torch.cat([records[:4], records[5:]])
    with_nan = clipped_sum(module, records, 0.1, loss=lambda out: scores_loss(out) * (1 + marked))
    assert (with_nan - clipped_sum(module, others, 0.1)).norm() < 1e-6


def test_frozen_parameters_neither_get_a_sum_nor_count_in_the_norm():
    module, records = build("conv with group norm")
    for p in (module[0].weight, module[1].bias, module[3].weight):
        p.requires_grad_(False)
    trained = [p for p in module.parameters() if p.requires_grad]
    for i in range(3):
        gradients = torch.autograd.grad(scores_loss(module(records[i : i + 1])).sum(), trained)
        expected = torch.cat([g.flatten() for g in gradients]).double()
        expected *= min(1.0, 0.05 / expected.norm())
        assert (clipped_sum(module, records[i : i + 1], 0.05) - expected).norm() <= 1e-5 * expected.norm()


def test_smaller_batches_after_larger_ones_use_no_stale_buffer():
    module, records = build("conv with group norm")
    clip = BookKeepingClip(module, max_grad_norm=0.1)
    sums, fresh = GradientSums(clip.parameters), GradientSums(clip.parameters)
    for size in (37, 5, 20, 1):
        sums.flat.zero_()
        fresh.flat.zero_()
        clip.add_clipped_sum(records[:size], scores_loss, sums)
        BookKeepingClip(module, max_grad_norm=0.1).add_clipped_sum(records[:size], scores_loss, fresh)
        assert torch.equal(sums.flat, fresh.flat)


def test_parameters_and_their_gradients_are_left_alone():
    module, records = build("mlp")
    before = [p.clone() for p in module.parameters()]
    clipped_sum(module, records, 0.1)
    assert all(p.grad is None and torch.equal(p, b) for p, b in zip(module.parameters(), before, strict=True))
    assert not any(layer._forward_hooks for layer in module.modules())


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x):
        return self.layer(self.layer(x))


class Unused(nn.Module):
    def __init__(self):
        super().__init__()
        self.used, self.spare = nn.Linear(4, 1), nn.Linear(4, 1)

    def forward(self, x):
        return self.used(x)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.second.weight = self.first.weight

    def forward(self, x):
        return self.second(self.first(x))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)), "mixes the patients"),
        (lambda: nn.Sequential(nn.Conv1d(4, 4, 1)), "Conv1d with parameters.*opacus-hooks"),
        (lambda: nn.PReLU(), "PReLU"),
        (lambda: nn.Conv2d(1, 1, 3, padding="same"), "zero padding in numbers"),
        (lambda: nn.Conv2d(1, 1, 3, padding=1, padding_mode="circular"), "zero padding in numbers"),
        (lambda: nn.Embedding(5, 4, scale_grad_by_freq=True), "leave them off"),
        (Twice, "runs twice"),
        (Unused, "did not run"),
        (Tied, "shares a parameter"),
        (lambda: nn.Tanh(), "no trainable parameter"),
    ],
)
def test_a_module_it_cannot_bound_is_refused_in_words(make, message):
    with pytest.raises(UnsupportedModuleError, match=message):
        clipped_sum(make(), torch.randn(3, 4), 1.0)


@pytest.mark.parametrize("reduce", [torch.mean, torch.sum, lambda losses: losses.unsqueeze(1)])
def test_a_loss_that_is_not_one_number_per_record_is_refused(reduce):
    module, records = build("mlp")
    with pytest.raises(ValueError, match="one loss per record"):
        clipped_sum(module, records, 1.0, loss=lambda out: reduce(scores_loss(out)))
