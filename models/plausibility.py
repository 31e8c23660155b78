"""What a site's reply cannot be, if the site ran what the study says: checks against public numbers only.

Moments. A sum over patients obeys laws that hold for whatever patients a site has: every column counts the same
patients, what a table measures twice agrees, no count is below zero, and no vector is longer than its patients allow.
Noise of a known size is all that may break them. Each law is tested so that an honest site fails one of all tests
with a probability below `FALSE_ALARM`, by bounds that hold exactly. The size of the noise is tested both ways.

Updates. The site's generator takes a known number of Adam steps of a known length, so that no coordinate of an honest
update can have moved further.

What passes may still be a lie: any table of patients has lawful moments, also one that does not exist.

References:
    Laurent, Massart: Adaptive estimation of a quadratic functional by model selection, Annals of Statistics 2000,
    lemma 1 (tails of chi-square).
    Boucheron, Lugosi, Massart: Concentration Inequalities, 2013, theorem 5.6 (norm of a Gaussian vector).
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from models.anchor import estimated_patients
from models.moments import LABEL_TRIPLE_WEIGHT, MomentLayout
from models.refinement import LOGIT_BOUND

FALSE_ALARM = 1e-7
"""Probability, at most, that an honest site's moments fail a check."""
MIN_TOTAL = 2.0
"""A site whose number of patients is below so many standard deviations of its noise tells of nobody."""
_TESTS = 4  # noise too large, noise too small, a count below zero, a vector too long


class ImplausibleError(ValueError):
    """A reply that no site which ran the study would send, or that says nothing; the text says why."""


def redundancy(layout: MomentLayout, vector: Tensor) -> tuple[float, int]:
    """What of a vector is noise for certain: its energy, and in how many degrees of freedom.

    A measured interaction has rows and columns of sum zero before the noise, and each column counts the same
    patients. The energy over the noise's variance is chi-square distributed with so many degrees of freedom.
    """
    vector = vector.double()
    totals = torch.stack([part.sum() for part in vector[: layout.width].split(layout.cardinalities)])
    levels = torch.tensor(layout.cardinalities, dtype=torch.float64)
    off = totals - estimated_patients(layout, vector) * layout.scale
    panels = vector[layout.width :]
    # Reading takes exactly that part out of the panels, and writing puts the rest back where it was.
    lawful = layout.write(layout.read(vector))[layout.width :]
    cells = sum((d_a - 1) * (d_b - 1) for d_a, d_b in _pairs(layout))
    energy = (off.square() / levels).sum() + (panels - lawful).square().sum()
    return float(energy), layout.num_columns - 1 + len(panels) - cells


def _total_std(layout: MomentLayout) -> float:
    """Standard deviation of the estimated patients where that of a count's noise is 1."""
    return sum(1 / d for d in layout.cardinalities) ** -0.5


def _pairs(layout: MomentLayout) -> Iterator[tuple[int, int]]:
    """Levels of both columns of each measured interaction, the label's contrasts included."""
    for a, d_a in enumerate(layout.cardinalities):
        for b in range(a + 1, layout.num_columns):
            times = 1 if layout.label in (a, b) else 1 + layout.num_contrasts
            yield from ((d_a, layout.cardinalities[b]),) * times


def check_moments(layout: MomentLayout, measured: Tensor, *, noise_std: float, sensitivity: float) -> None:
    """Check that a vector can be a sum over patients plus the study's noise.

    Privacy: looks at what the site released, so that it costs nothing.

    Args:
        layout: of the table's moments, which `measured` begins with.
        measured: (size or more,) float64, finite.
        noise_std: of the noise that the study demands in each entry, above 0.
        sensitivity: L2 norm of one patient's part in `measured`, at most.

    Raises:
        ImplausibleError: it cannot, but for a probability below `FALSE_ALARM`; or it tells of no patients.
    """
    surprise = math.log(_TESTS / FALSE_ALARM)
    vector = measured[: layout.size]
    energy, freedom = redundancy(layout, vector)
    ratio = energy / noise_std**2
    if ratio > freedom + 2 * math.sqrt(freedom * surprise) + 2 * surprise:
        raise ImplausibleError(
            f"the moments contradict each other by {math.sqrt(ratio / freedom):.3g} times the study's noise"
        )
    if ratio < freedom - 2 * math.sqrt(freedom * surprise):
        raise ImplausibleError(
            f"the moments hold {math.sqrt(ratio / freedom):.3g} times the noise that the study demands"
        )
    count_std = noise_std / layout.scale
    total_std = count_std * _total_std(layout)
    num_patients = estimated_patients(layout, vector)
    if num_patients < MIN_TOTAL * total_std:
        raise ImplausibleError(
            f"the moments tell of {num_patients:.0f} patients, within the noise of none "
            f"(standard deviation {total_std:.0f})"
        )
    longest = (num_patients + math.sqrt(2 * surprise) * total_std) * sensitivity
    longest += noise_std * (math.sqrt(len(measured)) + math.sqrt(2 * surprise))
    if (length := float(measured.norm())) > longest:
        raise ImplausibleError(f"the moments' norm is {length:.3g}; so many patients allow {longest:.3g}")
    smallest, cells = _smallest_count(layout, vector)
    if smallest < -math.sqrt(2 * math.log(cells * _TESTS / FALSE_ALARM)) * count_std:
        raise ImplausibleError(
            f"a table holds a count below zero by {-smallest / count_std:.3g} standard deviations of its noise"
        )


def _smallest_count(layout: MomentLayout, vector: Tensor) -> tuple[float, int]:
    """The smallest cell of all tables in units of its own noise (where a count's is 1), and how many there are.

    Tables are put together from parts whose noises are independent: totals, centred columns, interactions.
    """
    found = layout.read(vector)
    centre = layout.centre  # 1/d
    column_of = layout.column_of
    num_patients = estimated_patients(layout, vector)
    means = torch.stack([part.mean() for part in found.one_way.split(layout.cardinalities)])
    singles = found.one_way - means[column_of]  # (D,) centred
    first, second = column_of[:, None] < column_of, centre[:, None] * centre
    spread = (1 - centre)[:, None]
    margins = spread * centre.square() + spread.T * centre.square()[:, None]
    pairs = found.interactions + singles[:, None] * centre + singles * centre[:, None] + num_patients * second
    emphasis = layout.pair_emphasis[column_of][:, column_of]
    measured = spread * spread.T / emphasis.square()  # what the noise of an interaction leaves in a cell
    pair_variance = measured + margins + second.square() * _total_std(layout) ** 2
    smallest = [found.one_way.min()]
    if first.any():
        smallest.append((pairs / pair_variance.sqrt())[first].min())
    cells = layout.width + int(first.sum())
    if layout.label is not None:
        own = slice(*layout.offsets[layout.label : layout.label + 2])
        others = first & (column_of != layout.label) & (column_of[:, None] != layout.label)
        levels = layout.cardinalities[layout.label]
        contrasted = []
        for contrast, triple in zip(layout.contrasts, found.label_interactions, strict=True):
            by_label = found.interactions[:, own] @ contrast  # (D,)
            total = found.one_way[own] @ contrast
            contrasted.append(
                triple + by_label[:, None] * centre + by_label * centre[:, None] + total * second
            )
        variance = measured / LABEL_TRIPLE_WEIGHT**2 + margins + second.square()
        variance = (pair_variance / levels**2 + (1 - 1 / levels) * variance).sqrt()
        for level in range(levels):
            table = pairs / levels
            for contrast, part in zip(layout.contrasts, contrasted, strict=True):
                table = table + contrast[level] * part
            if others.any():
                smallest.append((table / variance)[others].min())
        cells += levels * int(others.sum())
    return float(torch.stack(smallest).min()), cells


def check_judgements(logits: Tensor) -> None:
    """Check that judgements can come out of a round of the refine phase.

    Args:
        logits: (num_judged,) finite.

    Raises:
        ImplausibleError: one is beyond what a site sends, or they are all alike.
    """
    largest = float(logits.abs().max())
    if largest > LOGIT_BOUND:
        raise ImplausibleError(f"a record is judged {largest:.3g}; a site sends {LOGIT_BOUND:g} at most")
    if bool((logits == logits[0]).all()):
        raise ImplausibleError("all records are judged alike: no step was taken")
