"""The Gaussian mechanism for bounded sums: what a site sends in the measure phase.

Formal guarantees:
    - `bounded_sum` changes by at most `max_norm` in L2 when one patient is added or removed;
    - `release_sum` of such a sum is the Gaussian mechanism with standard deviation
      noise_multiplier * max_norm, then rounded to a public grid (post-processing).

References:
    Dwork and Roth, The algorithmic foundations of differential privacy, 2014, appendix A.
    Mironov, On significance of the least significant bits for differential privacy, CCS 2012.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from privacy.noise import NoiseSource

GRID_BITS = 10  # the grid lies this many powers of two below the noise: rounding adds 1e-7 of its variance


def public_grid(scale: float) -> float:
    """The step that noisy values are rounded to: a power of two, 2^-11 to 2^-10 of the noise's `scale`.

    It depends on public numbers only. It is far above the spacing of float64 (2^-52 of a value), so that what
    floating point does to the last bits of sum and noise is rounded away; and far below the noise, so that it
    costs nothing.
    """
    if not (math.isfinite(scale) and scale > 0):
        raise ValueError(f"scale is {scale!r}; it must be a finite standard deviation above 0")
    return 2.0 ** (math.floor(math.log2(scale)) - GRID_BITS)


def round_to_grid_(values: Tensor, grid: float) -> Tensor:
    """Round in place to the nearest multiple of `grid`, exactly, as `grid` is a power of two."""
    return values.mul_(1.0 / grid).round_().mul_(grid)


def bounded_sum(contributions: Tensor, max_norm: float) -> Tensor:
    """Sum one row per patient after scaling each row to an L2 norm of at most `max_norm`.

    Privacy: neighbours differ by one row; the sum changes by at most `max_norm` in L2. Nothing is released.

    Args:
        contributions: (P, F), one row per patient; any real dtype. Sensitive: do not log.
        max_norm: L2 bound, above 0.

    Returns:
        float64 (F,). Rows with NaN or Inf count as zero, without any branch on how many there are.
    """
    _check_max_norm(max_norm)
    if contributions.ndim != 2:
        raise ValueError(f"contributions has {contributions.ndim} dimensions; one row per patient makes 2")
    rows = contributions.to(torch.float64)  # (P, F)
    keep = torch.isfinite(rows).all(dim=1, keepdim=True)
    rows = torch.where(keep, rows, 0.0)
    # Scaled by the largest entry first, so that squares of huge or tiny entries stay in range.
    largest = rows.abs().amax(dim=1, keepdim=True) if rows.shape[1] else rows.new_ones(rows.shape[0], 1)
    largest = torch.where(largest > 0, largest, 1.0)
    norms = largest * torch.linalg.vector_norm(rows / largest, dim=1, keepdim=True)
    return (rows * (max_norm / norms).clamp(max=1.0)).sum(dim=0) if len(rows) else rows.sum(dim=0)


def release_sum(values: Tensor, *, max_norm: float, noise_multiplier: float, noise: NoiseSource) -> Tensor:
    """Add Gaussian noise to a sum and round it to the public grid: what may leave the site.

    Privacy: unit is one patient with all records. When adding or removing one patient changes `values` by at
    most `max_norm` in L2, this costs one `gaussian` event with this `noise_multiplier`. Debit it first.

    Args:
        values: the exact bounded sum, any shape. Sensitive: do not log.
        max_norm: L2 bound on one patient's part, above 0.
        noise_multiplier: standard deviation of the noise over `max_norm`, above 0.
        noise: where the noise comes from; `SystemNoise` on patients.

    Returns:
        float64, shaped like `values`, every entry a multiple of `public_grid(noise_multiplier * max_norm)`.

    Raises:
        ValueError: a parameter is out of range, or `values` is not finite (it was not a bounded sum).
    """
    _check_max_norm(max_norm)
    if not (math.isfinite(noise_multiplier) and noise_multiplier > 0):
        raise ValueError(f"noise_multiplier is {noise_multiplier!r}; it must be a finite number above 0")
    exact = values.detach().to(device="cpu", dtype=torch.float64)
    if not bool(torch.isfinite(exact).all()):
        raise ValueError("values holds NaN or Inf, so it is no bounded sum; make it with bounded_sum")
    scale = noise_multiplier * max_norm
    noisy = noise.normal(tuple(exact.shape), scale=scale).add_(exact)
    return round_to_grid_(noisy, public_grid(scale))


def _check_max_norm(max_norm: float) -> None:
    if not (math.isfinite(max_norm) and max_norm > 0):
        raise ValueError(f"max_norm is {max_norm!r}; it must be a finite number above 0")
