"""MST in the environment of `peers.py`: noisy columns, a private maximum spanning tree of pairs, its noisy pairs.

    python benchmarks/peers_mst.py --folder FOLDER --epsilon 1

After McKenna, Miklau and Sheldon, "Winning the NIST Contest: A scalable and general approach to differentially
private synthetic data" (2021): a third of the budget each for all columns, for choosing the tree and for its
pairs; levels below three standard deviations of the noise are merged. Inference is the package's (`mbi`).
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Sequence
from pathlib import Path

import networkx as nx
import numpy as np
from mbi import Domain, LinearMeasurement
from mbi.estimation import MirrorDescent
from peers_budget import concentrated_budget, counts_of, draw_exponentially, read_table
from peers_queries import TreeQueries

RARE = 3.0  # standard deviations below which a level counts as rare
TREE_ITERATIONS, FINAL_ITERATIONS = 2_500, 10_000


def measured(
    codes: np.ndarray, domain: Domain, cliques: Sequence[tuple[str, ...]], sigma: float
) -> list[LinearMeasurement]:
    """Counts with noise; `sigma` is that of all of them as one query of sensitivity 1."""
    each = sigma * np.sqrt(len(cliques))
    rng = np.random.default_rng()
    answers = [counts_of(codes, domain, clique) for clique in cliques]
    return [
        LinearMeasurement(counts + rng.normal(0.0, each, counts.size), clique, stddev=each)
        for clique, counts in zip(cliques, answers, strict=True)
    ]


def merge_rare(columns: Sequence[LinearMeasurement]) -> dict[str, np.ndarray]:
    """For each column the new code of each level; the rare ones share the last."""
    mapping = {}
    for column in columns:
        common = np.asarray(column.noisy_measurement) >= RARE * column.stddev
        mapping[column.clique[0]] = np.where(common, np.cumsum(common) - 1, common.sum())
    return mapping


def choose_tree(
    codes: np.ndarray, domain: Domain, columns: list[LinearMeasurement], rho: float
) -> list[tuple[str, ...]]:
    """The pairs of a spanning tree, each drawn by how far independence is from the truth."""
    queries = TreeQueries(MirrorDescent().estimate(domain, columns, iters=TREE_ITERATIONS))
    distances = {
        pair: float(np.abs(counts_of(codes, domain, pair) - queries.marginal(pair)).sum())
        for pair in itertools.combinations(domain.attributes, 2)
    }
    tree = nx.Graph()
    tree.add_nodes_from(domain.attributes)
    epsilon = np.sqrt(8 * rho / (len(domain) - 1))
    while tree.number_of_edges() < len(domain) - 1:
        open_pairs = {pair: far for pair, far in distances.items() if not nx.has_path(tree, *pair)}
        tree.add_edge(*draw_exponentially(open_pairs, epsilon, 1.0))
    return [domain.canonical(edge) for edge in tree.edges]


def main() -> None:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True, help="with codes.npy and columns.json")
    parser.add_argument("--epsilon", type=float, required=True)
    parser.add_argument("--delta", type=float, default=1e-5)
    arguments = parser.parse_args()
    codes, levels = read_table(arguments.folder)
    domain = Domain(tuple(levels), tuple(levels.values()))
    rho = concentrated_budget(arguments.epsilon, arguments.delta)
    sigma = np.sqrt(3 / (2 * rho))
    columns = measured(codes, domain, [(name,) for name in levels], sigma)
    mapping = merge_rare(columns)
    merged = Domain(domain.attributes, tuple(int(mapping[name].max()) + 1 for name in levels))
    # A column that stays whole must stay a plain count: the package takes the number of rows from those.
    changed = {name: new for name, new in mapping.items() if (new != np.arange(new.size)).any()}
    merged_columns = [column.compress(changed, domain) for column in columns]
    merged_codes = np.stack([mapping[name][codes[:, i]] for i, name in enumerate(levels)], 1)
    pairs = choose_tree(merged_codes, merged, merged_columns, rho / 3)
    measurements = merged_columns + measured(merged_codes, merged, pairs, sigma)
    model = MirrorDescent().estimate(merged, measurements, iters=FINAL_ITERATIONS)
    table = model.synthetic_data(rows=len(codes)).to_dict()
    rng = np.random.default_rng()
    rows = np.empty_like(codes)
    for i, name in enumerate(levels):
        for code in range(merged[name]):
            here = np.asarray(table[name]) == code
            rows[here, i] = rng.choice(np.flatnonzero(mapping[name] == code), int(here.sum()))
    print("  ".join(" x ".join(pair) for pair in pairs), flush=True)
    np.save(arguments.folder / "mst.npy", rows)


if __name__ == "__main__":
    main()
