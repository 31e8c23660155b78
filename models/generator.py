"""The generator: a mixture of product distributions over the columns' levels.

A latent component c is drawn with probability w_c, then every column independently from softmax(logits[c]).
First and second moments are exact sums over the components, without sampling noise, and so is conditioning:
P(c | condition) is a re-weighting of the components.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from models.table import column_offsets, one_hot


class GeneratorError(ValueError):
    """Arrays that are no generator of this schema."""


class MixtureGenerator(nn.Module):
    """A mixture of product distributions.

    Attributes:
        logits: (C, D) parameter; the columns' logits in each component.
        component_logits: (C,) parameter; softmax gives the components' weights.
        cardinalities: levels of each column; D in all.
    """

    def __init__(self, logits: Tensor, component_logits: Tensor, cardinalities: Sequence[int]) -> None:
        super().__init__()
        self.cardinalities = tuple(int(d) for d in cardinalities)
        if logits.ndim != 2 or logits.shape[1] != sum(self.cardinalities) or len(logits) < 1:
            raise GeneratorError(
                f"logits have shape {tuple(logits.shape)}; it must be (components, {sum(self.cardinalities)})"
            )
        if component_logits.shape != (len(logits),):
            raise GeneratorError(
                f"component_logits have shape {tuple(component_logits.shape)}; it must be ({len(logits)},)"
            )
        for name, array in (("logits", logits), ("component_logits", component_logits)):
            if not bool(torch.isfinite(array).all()):
                raise GeneratorError(f"{name} hold a value that is not finite")
        self.logits = nn.Parameter(logits.detach().clone().float())
        self.component_logits = nn.Parameter(component_logits.detach().clone().float())

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Tensor], cardinalities: Sequence[int]) -> MixtureGenerator:
        """Read what `to_arrays` gave.

        Raises:
            GeneratorError: an array is missing, has another shape, or holds a value that is not finite.
        """
        missing = {"logits", "component_logits"} - set(arrays)
        if missing:
            raise GeneratorError(f"arrays {sorted(missing)} are missing; there are {sorted(arrays)}")
        return cls(arrays["logits"], arrays["component_logits"], cardinalities)

    def to_arrays(self) -> dict[str, Tensor]:
        """The weights of the generator, for safetensors."""
        return {
            "logits": self.logits.detach().clone(),
            "component_logits": self.component_logits.detach().clone(),
        }

    @property
    def num_components(self) -> int:
        """C."""
        return len(self.logits)

    def weights(self) -> Tensor:
        """Probability of each component: (C,)."""
        return self.component_logits.softmax(0)

    def probabilities(self) -> Tensor:
        """Distribution of each column in each component: (C, D)."""
        return torch.cat([part.softmax(1) for part in self.logits.split(self.cardinalities, 1)], 1)

    def one_way(self) -> Tensor:
        """Exact marginal distributions of the columns: (D,)."""
        return self.weights() @ self.probabilities()

    def moments(self) -> Tensor:
        """Exact second moment of the one-hot records: (D, D); the blocks of two columns are their tables.

        Within one column's own block the diagonal holds its marginal and the rest is zero.
        """
        P = self.probabilities()
        M = (P * self.weights()[:, None]).T @ P
        column = torch.arange(len(self.cardinalities)).repeat_interleave(torch.tensor(self.cardinalities))
        own = column[:, None] == column
        return torch.where(own, torch.diag(self.one_way()), M)

    def first_columns(self, number: int) -> MixtureGenerator:
        """The same mixture of the first columns alone."""
        cardinalities = self.cardinalities[:number]
        return MixtureGenerator(self.logits[:, : sum(cardinalities)], self.component_logits, cardinalities)

    @torch.no_grad()
    def sample_codes(self, n: int, *, generator: torch.Generator) -> Tensor:
        """Records: (n, K) int64 levels, the same for the same state of `generator`; see `draw_codes`."""
        return draw_codes(
            self.probabilities().double(), self.weights().double(), self.cardinalities, n, generator=generator
        )

    @torch.no_grad()
    def log_likelihood(self, codes: Tensor) -> Tensor:
        """Natural logarithm of each record's probability, (N, K) int64 codes to (N,) float32."""
        logs = torch.cat([part.log_softmax(1) for part in self.logits.split(self.cardinalities, 1)], 1)
        return (one_hot(codes, self.cardinalities) @ logs.T + self.component_logits.log_softmax(0)).logsumexp(
            1
        )


def draw_codes(
    probabilities: Tensor,
    weights: Tensor,
    cardinalities: Sequence[int],
    n: int,
    *,
    generator: torch.Generator,
) -> Tensor:
    """Draw from a mixture of products by inverse distribution functions: (n, K) int64, in random order.

    Each record alone is distributed as the mixture. Together they are stratified: components are drawn
    systematically, and within a component each column's uniforms are a Latin hypercube, so that a cohort's
    margins are nearer to the release's than those of independent draws.

    Args:
        probabilities: (C, D) float64; each column's part of a row may have any positive sum.
        weights: (C,) float64, of any positive sum.
        cardinalities: levels of each column.
        n: how many.
        generator: the source of randomness.

    References:
        McKay, Beckman, Conover: A Comparison of Three Methods for Selecting Values of Input Variables, 1979.
    """

    def uniforms() -> Tensor:
        return torch.rand(n, generator=generator, dtype=torch.float64)

    components = len(weights)
    heaped = weights.cumsum(0)
    places = (torch.arange(n, dtype=torch.float64) + uniforms()) / max(n, 1) * heaped[-1]
    component = torch.searchsorted(heaped, places, right=True).clamp_(max=components - 1)  # ascending
    sizes = component.bincount(minlength=components)
    stratum = torch.arange(n) - (sizes.cumsum(0) - sizes)[component]
    # The component of each record; of 16 bits where that will do, which NumPy sorts in linear time.
    belongs = component[torch.randperm(n, generator=generator)].numpy().astype(np.min_scalar_type(components))
    codes = torch.empty(len(cardinalities), n, dtype=torch.int64)
    offsets = column_offsets(cardinalities).tolist()
    base = torch.arange(components, dtype=torch.float64)[:, None]
    for column, levels in enumerate(cardinalities):
        part = probabilities[:, offsets[column] : offsets[column + 1]]
        rising = part.cumsum(1) / part.sum(1, keepdim=True).clamp_min(1e-300)
        # All components' distribution functions end to end: one search for all strata, in ascending order. A level
        # of probability 0 has no interval; a draw beyond the last step by rounding takes the last that has one.
        flat = (base + rising.clamp(max=1.0)).flatten()
        uniform = ((stratum + uniforms()) / sizes[component]).clamp_(max=1 - 2**-53)
        found = torch.searchsorted(flat, component + uniform, right=True) - component * levels
        last = levels - 1 - part.flip(1).gt(0).int().argmax(1)
        # The strata of a component go to its records in an order that is random and the column's own.
        shuffled = torch.randperm(n, generator=generator).numpy()
        records = shuffled[np.argsort(belongs[shuffled], kind="stable")]
        codes[column, torch.from_numpy(records)] = torch.minimum(found.clamp_(min=0), last[component])
    return codes.T
