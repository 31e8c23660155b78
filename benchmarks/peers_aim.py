"""AIM in the environment of `peers.py`: adaptive measurements of marginals, fitted by a graphical model.

    python benchmarks/peers_aim.py --folder FOLDER --epsilon 1

After McKenna, Mullins, Sheldon and Miklau, "AIM: An Adaptive and Iterative Mechanism for Differentially Private
Synthetic Data" (VLDB 2022), with the paper's settings: 16 rounds per column, 10 % of the budget for choosing and
90 % for measuring, all pairs (or triples) as the workload, a model of at most 80 MB. Inference is the package's
(`mbi`). Add-or-remove of one row. What has been measured is written after each round, so that an interrupted run
says how far it came and `--resume` goes on from there; `--limit-minutes` ends it after so long.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import time
from pathlib import Path

import jax
import numpy as np
from mbi import Domain, LinearMeasurement, MarkovRandomField, junction_tree
from mbi.estimation import MirrorDescent
from peers_budget import concentrated_budget, counts_of, draw_exponentially, read_table
from peers_queries import TreeQueries

Clique = tuple[str, ...]
ROUNDS_PER_COLUMN = 16
CHOOSING_SHARE = 0.1
ROUNDS_BETWEEN_CLEARING = 20  # every round's model is a program of its own, kept by the package's compiler
SAMPLE_SECONDS = 300.0  # a table is drawn from the model so far this often


def candidates_of(domain: Domain, ways: int) -> dict[Clique, float]:
    """Every marginal that helps a workload of all `ways`-way marginals, and by how much (the paper's w_r)."""
    workload = list(itertools.combinations(domain.attributes, ways))
    closure = [clique for k in range(1, ways + 1) for clique in itertools.combinations(domain.attributes, k)]
    return {clique: float(sum(len(set(clique) & set(other)) for other in workload)) for clique in closure}


def measured(codes: np.ndarray, domain: Domain, clique: Clique, sigma: float) -> LinearMeasurement:
    """A marginal's counts with Gaussian noise."""
    counts = counts_of(codes, domain, clique)
    noise = np.random.default_rng().normal(0.0, sigma, counts.size)
    return LinearMeasurement(counts + noise, clique, stddev=sigma)


class Aim:
    """One run of the mechanism.

    Args:
        codes: (N, K) the rows.
        domain: names and levels of the columns.
        rho: the whole budget, in concentrated differential privacy.
        ways: of the workload.
        max_model_mb: largest junction tree, in MB of 8-byte cells.
        iterations: of mirror descent after each measurement.
        tolerance: mirror descent also stops when the loss falls by less than this share in 50 steps, twice.
        folder: for `aim-state.json`, and for `aim.npy` with `aim-drawn.json` that says when it was drawn.
        limit_seconds: no round begins after so long, earlier runs that were resumed counted in.
    """

    def __init__(
        self,
        codes: np.ndarray,
        domain: Domain,
        *,
        rho: float,
        ways: int,
        max_model_mb: float,
        iterations: int,
        tolerance: float | None,
        folder: Path,
        limit_seconds: float = math.inf,
    ) -> None:
        self.codes, self.domain, self.rho = codes, domain, rho
        self.max_model_mb, self.iterations, self.tolerance = max_model_mb, iterations, tolerance
        self.folder, self.limit_seconds = folder, limit_seconds
        self.candidates = candidates_of(domain, ways)
        self.answers = {clique: counts_of(codes, domain, clique) for clique in self.candidates}
        self.rounds = ROUNDS_PER_COLUMN * len(domain)
        self.sigma = np.sqrt(self.rounds / (2 * (1 - CHOOSING_SHARE) * rho))
        self.choosing = np.sqrt(8 * CHOOSING_SHARE * rho / self.rounds)
        self.spent, self.seconds, self.done = 0.0, 0.0, False
        self.measurements: list[LinearMeasurement] = []

    def run(self) -> MarkovRandomField:
        """Measure and fit until the budget is spent or the time is up."""
        started = time.perf_counter() - self.seconds
        drawn = time.perf_counter()
        if not self.measurements:
            for name in self.domain.attributes:
                self.measurements.append(measured(self.codes, self.domain, (name,), self.sigma))
                self.spent += 0.5 / self.sigma**2
        model = self.fit(None)
        while not self.done and self.seconds < self.limit_seconds:
            model = self.one_round(model)
            self.seconds = time.perf_counter() - started
            self.write_state()
            if len(self.measurements) % ROUNDS_BETWEEN_CLEARING == 0:
                jax.clear_caches()
            if time.perf_counter() - drawn > SAMPLE_SECONDS:
                self.draw(model)
                drawn = time.perf_counter()
        self.draw(model)
        return model

    def one_round(self, model: MarkovRandomField) -> MarkovRandomField:
        """Choose the worst marginal, measure it, fit again, and anneal the noise when nothing was learned."""
        left = self.rho - self.spent
        if left < 2 * (0.5 / self.sigma**2 + self.choosing**2 / 8):
            self.sigma = np.sqrt(1 / (2 * (1 - CHOOSING_SHARE) * left))
            self.choosing = np.sqrt(8 * CHOOSING_SHARE * left)
            self.done = True
        self.spent += 0.5 / self.sigma**2 + self.choosing**2 / 8
        choosing = time.perf_counter()
        clique = self.choose(model)
        self.measurements.append(measured(self.codes, self.domain, clique, self.sigma))
        before = TreeQueries(model).marginal(clique)
        fitting = time.perf_counter()
        model = self.fit(model)
        change = np.abs(TreeQueries(model).marginal(clique) - before).sum()
        annealed = change <= np.sqrt(2 / np.pi) * self.sigma * before.size
        print(
            f"{len(self.measurements) - len(self.domain):4d}  spent {self.spent / self.rho:6.1%}  "
            f"sigma {self.sigma:6.1f}  chosen in {fitting - choosing:5.1f} s, fitted in "
            f"{time.perf_counter() - fitting:6.1f} s  "
            f"{junction_tree.hypothetical_model_size(self.domain, model.cliques):6.2f} MB  {' x '.join(clique)}"
            f"{'  (noise halved)' if annealed else ''}",
            flush=True,
        )
        if annealed:
            self.sigma, self.choosing = self.sigma / 2, self.choosing * 2
        return model

    def choose(self, model: MarkovRandomField) -> Clique:
        """The exponential mechanism over the marginals that the model may still take in."""
        limit = self.max_model_mb * self.spent / self.rho
        within = {
            part for clique in model.cliques for k in (1, 2, 3) for part in itertools.combinations(clique, k)
        }
        queries = TreeQueries(model)
        scores: dict[Clique, float] = {}
        for clique, weight in self.candidates.items():
            larger = [*model.cliques, clique]
            if clique in within or junction_tree.hypothetical_model_size(self.domain, larger) <= limit:
                distance = np.abs(self.answers[clique] - queries.marginal(clique)).sum()
                expected = np.sqrt(2 / np.pi) * self.sigma * self.answers[clique].size
                scores[clique] = weight * (distance - expected)
        sensitivity = max(self.candidates[clique] for clique in scores)
        return draw_exponentially(scores, self.choosing, sensitivity)

    def fit(self, start: MarkovRandomField | None) -> MarkovRandomField:
        """Mirror descent over everything measured so far, from the model before."""
        return MirrorDescent().estimate(
            self.domain,
            self.measurements,
            iters=self.iterations,
            warm_start=start,
            tol=self.tolerance,
        )

    def draw(self, model: MarkovRandomField) -> None:
        """As many rows as there are, from the model so far."""
        table = model.synthetic_data(rows=len(self.codes)).to_dict()
        rows = np.stack([np.asarray(table[name]) for name in self.domain.attributes], 1)
        np.save(self.folder / "aim.npy", rows.astype(np.int64))
        (self.folder / "aim-drawn.json").write_text(json.dumps(self.progress()))

    def progress(self) -> dict[str, float]:
        """How far it came: what goes with rows drawn now."""
        return {
            "share_spent": float(self.spent / self.rho),
            "rounds": len(self.measurements) - len(self.domain),
            "seconds": self.seconds,
            "done": self.done,
        }

    def write_state(self) -> None:
        """Everything measured, for `--resume`."""
        state = {
            **self.progress(),
            "spent": self.spent,
            "sigma": float(self.sigma),
            "choosing": float(self.choosing),
            "measurements": [
                [list(m.clique), np.asarray(m.noisy_measurement).tolist(), float(m.stddev)]
                for m in self.measurements
            ],
        }
        partial = self.folder / "aim-state.json.part"
        partial.write_text(json.dumps(state))
        partial.replace(self.folder / "aim-state.json")

    def read_state(self) -> None:
        """Go on where an interrupted run stopped."""
        state = json.loads((self.folder / "aim-state.json").read_text())
        self.spent, self.sigma, self.choosing = state["spent"], state["sigma"], state["choosing"]
        self.seconds, self.done = state["seconds"], state["done"]
        self.measurements = [
            LinearMeasurement(np.array(values), tuple(clique), stddev=sigma)
            for clique, values, sigma in state["measurements"]
        ]


def main() -> None:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True, help="with codes.npy and columns.json")
    parser.add_argument("--epsilon", type=float, required=True)
    parser.add_argument("--delta", type=float, default=1e-5)
    parser.add_argument("--ways", type=int, default=2, choices=(2, 3), help="of the workload's marginals")
    parser.add_argument("--max-model-mb", type=float, default=80.0)
    parser.add_argument("--iterations", type=int, default=1000)
    parser.add_argument("--tolerance", type=float, default=None)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--limit-minutes", type=float, default=math.inf)
    arguments = parser.parse_args()
    codes, columns = read_table(arguments.folder)
    aim = Aim(
        codes,
        Domain(tuple(columns), tuple(columns.values())),
        rho=concentrated_budget(arguments.epsilon, arguments.delta),
        ways=arguments.ways,
        max_model_mb=arguments.max_model_mb,
        iterations=arguments.iterations,
        tolerance=arguments.tolerance,
        folder=arguments.folder,
        limit_seconds=60 * arguments.limit_minutes,
    )
    if arguments.resume:
        aim.read_state()
    aim.run()


if __name__ == "__main__":
    main()
