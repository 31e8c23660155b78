"""White-box canary audit of the discriminator step and of the measured moments, correct and with planted bugs.

    python benchmarks/audit_canaries.py                 the table of docs/assurance/dpsgd.md
    python benchmarks/audit_canaries.py --effort 0.1    a tenth of the canaries, as in `make test`

Every audit runs the code that a site runs, twice: as it is, which must stay below its claim, and with a bug planted,
which must be refuted. The auditor sees everything but the coins. Exit status 1 when an audit says otherwise.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor, nn

from privacy.auditing import AuditResult, ClaimedTradeOff, audit_scores, one_run_epsilon
from privacy.bookkeeping import BookKeepingClip
from privacy.dpsgd import DiscriminatorTrainer
from privacy.events import MechanismEvent
from privacy.mechanisms import bounded_sum, release_sum
from privacy.noise import SystemNoise

CLIP = 0.8
DIVISOR = 50.0


# The planted bugs.


class WeakNoise(SystemNoise):
    """Noise x 0.8."""

    def normal(self, shape, *, scale=1.0):
        return super().normal(shape, scale=0.8 * scale)


class SeededNoise(SystemNoise):
    """A fixed seed: every start repeats the noise of the one before."""

    def __init__(self):
        super().__init__()
        self.generator = torch.Generator().manual_seed(7)

    def normal(self, shape, *, scale=1.0):
        return scale * torch.randn(shape, generator=self.generator, dtype=torch.float64)


class EveryoneEveryStep(SystemNoise):
    """No Poisson: all patients in each step, accounted as if sampled."""

    def uniform(self, n):
        return torch.full((n,), 1e-12, dtype=torch.float64)


class ShuffledBatches(SystemNoise):
    """No Poisson: a shuffled pass in batches of fixed size, accounted as if sampled at rate 1/4."""

    def __init__(self):
        super().__init__()
        self.step = -1

    def uniform(self, n):
        self.step += 1
        if self.step == 0:
            self.order = super().uniform(n).argsort()
        coins = torch.ones(n, dtype=torch.float64)
        coins[self.order[self.step % 4 :: 4]] = 1e-12
        return coins


class NoClipping(DiscriminatorTrainer):
    def __init__(self, *args, **numbers):
        super().__init__(*args, **numbers)
        self._clip = BookKeepingClip(self.module, max_grad_norm=1e9)


class MeanReduction(DiscriminatorTrainer):
    """Divides by how many patients were drawn."""

    def _add_patients(self, records, real_loss):
        super()._add_patients(records, real_loss)
        self._optimizer._divisor = max(1, len(records))


# What is audited.


def trainer_of(module, *, trainer=DiscriminatorTrainer, noise=SystemNoise, sigma=1.0, rate=1.0):
    return trainer(
        module,
        torch.optim.SGD(module.parameters(), lr=1.0),
        sample_rate=rate,
        noise_multiplier=sigma,
        max_grad_norm=CLIP,
        nominal_batch_size=DIVISOR,
        physical_batch_size=500,
        noise=noise(),
    )


def upwards(scores: Tensor) -> Tensor:
    return -scores.squeeze(1)


def claim_of(sigma: float, rate: float = 1.0, steps: int = 1) -> ClaimedTradeOff:
    kind = "gaussian" if rate == 1 else "subsampled_gaussian"
    return ClaimedTradeOff(
        [MechanismEvent(phase="refine", kind=kind, noise_multiplier=sigma, sample_rate=rate, steps=steps)]
    )


@dataclass(frozen=True)
class Canaries:
    """One run's scores (or one score of each of many runs) with the coins."""

    scores: Tensor
    included: Tensor


def coins(count: int) -> Tensor:
    return SystemNoise().uniform(count) < 0.5


def step_scores(included: Tensor, *, steps: int = 1, **settings) -> list[Tensor]:
    """Runs the trainer on one-hot canaries, each with a gradient direction of its own; a score list per step."""
    module = nn.Linear(len(included), 1, bias=False)
    nn.init.zeros_(module.weight)
    trainer = trainer_of(module, **settings)
    patients = 20.0 * torch.eye(len(included))[included]  # gradients of norm 20, to be clipped
    scores = []
    for _ in range(steps):
        before = module.weight.detach().double().clone()
        trainer.step(patients, patients[:0], upwards, upwards)
        scores.append((module.weight.detach().double() - before).flatten() * DIVISOR / CLIP)
    return scores


def one_step(count: int, **settings) -> Canaries:
    included = coins(count)
    return Canaries(step_scores(included, **settings)[0], included)


def several_steps(count: int, combine: Callable[[Tensor], Tensor], *, steps: int, **settings) -> Canaries:
    included = coins(count)
    return Canaries(combine(torch.stack(step_scores(included, steps=steps, **settings))), included)


def restart(count: int, **settings) -> Canaries:
    """Two starts of the site: the canaries are in the first by coin, in the second never."""
    included = coins(count)
    first, second = (step_scores(c, **settings)[0] for c in (included, torch.zeros_like(included)))
    return Canaries(first - second, included)


def against_others(count: int, *, sigma: float, **settings) -> Canaries:
    """Many short runs: 12 known patients pull one way, the canary of a run pulls the other way."""
    included = coins(count)
    others = torch.tensor([[30.0]]).expand(12, 1)
    scores = []
    for inside in included.tolist():
        module = nn.Linear(1, 1, bias=False)
        nn.init.zeros_(module.weight)
        trainer = trainer_of(module, sigma=sigma, **settings)
        patients = torch.cat([others, torch.tensor([[-30.0]])]) if inside else others
        trainer.step(patients, patients[:0], upwards, upwards)
        scores.append(-float(module.weight.detach()))
    return Canaries(torch.tensor(scores), included)


def moments(count: int, *, sigma: float, clip: bool = True, noise=SystemNoise, releases: int = 1) -> Canaries:
    """The measured sum of one-hot feature vectors, twice as long as the bound allows."""
    included, source = coins(count), noise()
    rows = 2 * CLIP * torch.eye(count, dtype=torch.float64)[included]
    exact = bounded_sum(rows, CLIP) if clip else rows.sum(0)
    scores = torch.zeros(count, dtype=torch.float64)
    for _ in range(releases):
        scores += release_sum(exact, max_norm=CLIP, noise_multiplier=sigma, noise=source) / CLIP
    return Canaries(scores, included)


def moments_after_restart(count: int, *, sigma: float, noise=SystemNoise) -> Canaries:
    included = coins(count)
    sums = [
        bounded_sum(CLIP * torch.eye(count, dtype=torch.float64)[c], CLIP)
        for c in (included, ~included & False)
    ]
    first, second = (release_sum(s, max_norm=CLIP, noise_multiplier=sigma, noise=noise()) for s in sums)
    return Canaries(first - second, included)


def moments_in_bounds(count: int, *, sigma: float, fitted: bool) -> Canaries:
    """Many runs on one column, scaled to [0, 1] by public bounds or by those of the data; the canary is far out."""
    included, noise = coins(count), SystemNoise()
    others = torch.linspace(40.0, 60.0, 11, dtype=torch.float64)
    scores = []
    for inside in included.tolist():
        column = torch.cat([others, torch.tensor([140.0], dtype=torch.float64)]) if inside else others
        low, high = (float(column.min()), float(column.max())) if fitted else (0.0, 150.0)
        exact = bounded_sum(((column - low) / (high - low)).unsqueeze(1), 1.0)
        released = release_sum(exact, max_norm=1.0, noise_multiplier=sigma, noise=noise)
        scores.append(float(released) * (-1 if fitted else 1))
    return Canaries(torch.tensor(scores), included)


@dataclass(frozen=True)
class Audit:
    """One audit: its claim, how to run it, how many canaries, and whether a bug is in."""

    target: str
    planted: str  # empty for correct code
    claim: ClaimedTradeOff
    run: Callable[[int], Canaries]
    count: int
    repeats: int = 1

    def result(self, effort: float, confidence: float) -> AuditResult:
        rounds = [self.run(max(100, int(self.count * effort))) for _ in range(self.repeats)]
        scores, included = (torch.cat([getattr(r, name) for r in rounds]) for name in ("scores", "included"))
        return audit_scores(scores, included, self.claim, confidence=confidence)


def total(scores: Tensor) -> Tensor:
    return scores.sum(0)


def maximum(scores: Tensor) -> Tensor:
    return scores.amax(0)


def audits() -> Iterator[Audit]:
    """All of them: correct code first, then its bugs."""
    step, m = "step", 2000
    one, half = claim_of(1.0), claim_of(0.5)
    yield Audit(step, "", one, lambda n: one_step(n), m, 24)
    yield Audit(step, "noise x 0.8", one, lambda n: one_step(n, noise=WeakNoise), m, 24)
    yield Audit(step, "no clipping", one, lambda n: one_step(n, trainer=NoClipping), m)
    yield Audit(step, "an unlogged step", one, lambda n: several_steps(n, total, steps=2), m, 16)
    yield Audit(f"{step}, two starts", "", one, lambda n: restart(n), m, 4)
    yield Audit(f"{step}, two starts", "fixed seed", one, lambda n: restart(n, noise=SeededNoise), m)
    sampled = claim_of(0.3, 0.25, 4)
    for combine, planted, noise in (
        (total, "", SystemNoise),
        (total, "no Poisson: everyone", EveryoneEveryStep),
        (maximum, "", SystemNoise),
        (maximum, "no Poisson: shuffled", ShuffledBatches),
    ):

        def sampled_steps(n: int, combine=combine, noise=noise) -> Canaries:
            return several_steps(n, combine, steps=4, sigma=0.3, rate=0.25, noise=noise)

        yield Audit(f"4 steps, {combine.__name__}", planted, sampled, sampled_steps, 1000, 8)
    small = f"{step}, others known"
    yield Audit(small, "", half, lambda n: against_others(n, sigma=0.5), 1200)
    yield Audit(
        small, "mean reduction", half, lambda n: against_others(n, sigma=0.5, trainer=MeanReduction), 2400
    )
    sums = "moments"
    yield Audit(sums, "", one, lambda n: moments(n, sigma=1.0), m, 24)
    yield Audit(sums, "noise x 0.8", one, lambda n: moments(n, sigma=1.0, noise=WeakNoise), m, 24)
    yield Audit(sums, "no clipping", one, lambda n: moments(n, sigma=1.0, clip=False), m, 6)
    yield Audit(sums, "an unlogged release", one, lambda n: moments(n, sigma=1.0, releases=2), m, 16)
    yield Audit(f"{sums}, two starts", "", one, lambda n: moments_after_restart(n, sigma=1.0), m, 4)
    yield Audit(
        f"{sums}, two starts",
        "fixed seed",
        one,
        lambda n: moments_after_restart(n, sigma=1.0, noise=SeededNoise),
        m,
    )
    bounds = f"{sums}, others known"
    yield Audit(bounds, "", half, lambda n: moments_in_bounds(n, sigma=0.5, fitted=False), 4000)
    yield Audit(
        bounds, "bounds fitted, unpaid", half, lambda n: moments_in_bounds(n, sigma=0.5, fitted=True), 4000
    )


def one_run(effort: float, confidence: float) -> tuple[float, float]:
    """Epsilon that one run of one step betrays (Steinke et al. 2023), next to what it claims, at delta 1e-5."""
    canaries = one_step(max(500, int(4000 * effort)), sigma=0.5)
    count = len(canaries.scores)
    lower = one_run_epsilon(
        canaries.scores, canaries.included, delta=1e-5, guesses=count // 4, confidence=confidence
    )
    from privacy.accounting import spend_of

    return lower, spend_of(
        [MechanismEvent(phase="refine", kind="gaussian", noise_multiplier=0.5)], delta=1e-5
    ).epsilon


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--effort", type=float, default=1.0, help="share of the canaries, above 0")
    parser.add_argument("--confidence", type=float, default=0.999)
    parser.add_argument("--json", type=Path, help="write the rows here as well")
    options = parser.parse_args()
    torch.set_num_threads(1)
    console, rows, wrong = Console(width=None if sys.stdout.isatty() else 120), [], 0
    table = Table(
        "audited", "planted", "canaries", "false pos. <=", "true pos. >=", "allowed", "mu >=", "verdict",
        title=f"Canary audit, confidence {options.confidence}",
    )  # fmt: skip
    for audit in track(list(audits()), "auditing", console=console):
        result = audit.result(options.effort, options.confidence)
        right = result.refuted == bool(audit.planted)
        wrong += not right
        verdict = ("refuted" if result.refuted else "stands") + ("" if right else "  WRONG")
        mu = f"{result.mu_lower:.3f}" if math.isfinite(result.mu_lower) else "-"
        table.add_row(
            audit.target, audit.planted or "none", str(result.num_canaries), f"{result.fpr_upper:.4f}",
            f"{result.tpr_lower:.4f}", f"{result.allowed_tpr:.4f}", mu, verdict,
        )  # fmt: skip
        rows.append(
            {"audited": audit.target, "planted": audit.planted, **vars(result), "refuted": result.refuted}
        )
    console.print(table)
    lower, claimed = one_run(options.effort, options.confidence)
    wrong += lower > claimed
    console.print(
        f"one run, guesses on a quarter of 4,000 canaries: epsilon >= {lower:.2f}, claimed {claimed:.2f}"
    )
    if options.json:
        options.json.write_text(json.dumps({"audits": rows, "one_run": [lower, claimed]}, indent=1))
    console.print(f"[red]{wrong} audits came out wrong" if wrong else "every audit came out as it must")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
