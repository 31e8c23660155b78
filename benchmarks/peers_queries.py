"""Marginals of a fitted graphical model outside its cliques, by message passing in numpy.

The package answers such a query with a program compiled for it alone, about a second each; AIM asks 78 of them
in every round. Here the junction tree is calibrated once and each query multiplies along its own part of the tree.
"""

from __future__ import annotations

from collections.abc import Sequence

import networkx as nx
import numpy as np
from mbi import MarkovRandomField, junction_tree
from opt_einsum import contract

Clique = tuple[str, ...]


class TreeQueries:
    """The calibrated junction tree of a model.

    Args:
        model: whose marginals are asked for.
    """

    def __init__(self, model: MarkovRandomField) -> None:
        domain = model.domain
        self.total = float(model.total)
        self.letters = {name: chr(ord("a") + i) for i, name in enumerate(domain.attributes)}
        self.tree, _ = junction_tree.make_junction_tree(domain, [tuple(c) for c in model.cliques])
        beliefs = {node: np.zeros([domain[name] for name in node]) for node in self.tree.nodes}
        for clique, factor in model.potentials.tables.items():
            node = next(node for node in beliefs if set(clique) <= set(node))
            shape = [domain[name] if name in clique else 1 for name in node]
            order = [factor.domain.attributes.index(name) for name in node if name in clique]
            beliefs[node] += np.asarray(factor.values, dtype=float).transpose(order).reshape(shape)
        self.beliefs = {node: np.exp(table - table.max()) for node, table in beliefs.items()}
        self.roots = [min(part) for part in nx.connected_components(self.tree)]
        for root in self.roots:
            self._calibrate(root)

    def _sum(self, node: Clique, keep: Sequence[str], table: np.ndarray) -> np.ndarray:
        return table.sum(tuple(i for i, name in enumerate(node) if name not in keep), keepdims=True)

    def _align(self, node: Clique, other: Clique, table: np.ndarray) -> np.ndarray:
        """A table over `node`'s axes (others of length 1) as one over `other`'s."""
        shared = [name for name in node if name in other]
        flat = table.reshape([n for n, name in zip(table.shape, node, strict=True) if name in other])
        order = [shared.index(name) for name in other if name in shared]
        shape = iter(flat.transpose(order).shape)
        return flat.transpose(order).reshape([next(shape) if name in shared else 1 for name in other])

    def _calibrate(self, root: Clique) -> None:
        """One pass up the tree and one down, so that every node holds its own marginal (sum 1)."""
        edges = list(nx.dfs_edges(self.tree, root))
        sent: dict[tuple[Clique, Clique], np.ndarray] = {}
        for parent, child in reversed(edges):
            message = self._sum(child, parent, self.beliefs[child])
            sent[parent, child] = message
            self.beliefs[parent] = self.beliefs[parent] * self._align(child, parent, message)
            self.beliefs[parent] /= self.beliefs[parent].sum()
        self.beliefs[root] = self.beliefs[root] / self.beliefs[root].sum()
        for parent, child in edges:
            message = self._align(parent, child, self._sum(parent, child, self.beliefs[parent]))
            old = sent[parent, child]
            ratio = np.divide(message, old, out=np.zeros_like(message), where=old > 0)
            self.beliefs[child] = self.beliefs[child] * ratio

    def marginal(self, query: Clique) -> np.ndarray:
        """The model's counts over the columns of `query`, flattened with its last column fastest."""
        parts, names = [], []
        for root in self.roots:
            part = nx.node_connected_component(self.tree, root)
            here = tuple(name for name in query if any(name in node for node in part))
            if here:
                parts.append(self._in_one_tree(here, list(part)))
                names.append("".join(self.letters[name] for name in here))
        out = "".join(self.letters[name] for name in query)
        table = contract(",".join(names) + "->" + out, *parts)
        return self.total * np.asarray(table).ravel()

    def _in_one_tree(self, query: Clique, nodes: Sequence[Clique]) -> np.ndarray:
        root = max(nodes, key=lambda node: (len(set(query) & set(node)), -self.beliefs[node].size))
        needed = {root}
        for name in set(query) - set(root):
            paths = [nx.shortest_path(self.tree, root, node) for node in nodes if name in node]
            needed.update(min(paths, key=len))
        tree = self.tree.subgraph(needed)
        carried, table = self._gather(tree, root, None, query)
        return np.asarray(contract(f"{carried}->{''.join(self.letters[name] for name in query)}", table))

    def _gather(
        self, tree: nx.Graph, node: Clique, parent: Clique | None, query: Clique
    ) -> tuple[str, np.ndarray]:
        """This node's table times what its children carry, summed to the query and the parent's columns."""
        table = self.beliefs[node]
        if parent is not None:
            separator = self._sum(node, parent, table)
            table = np.divide(table, separator, out=np.zeros_like(table), where=separator > 0)
        names, tables = ["".join(self.letters[name] for name in node)], [table]
        for child in tree.neighbors(node):
            if child != parent:
                name, carried = self._gather(tree, child, node, query)
                names.append(name)
                tables.append(carried)
        wanted = set(query) | (set(node) & set(parent or ()))
        keep = "".join(letter for name, letter in self.letters.items() if name in wanted)
        keep = "".join(letter for letter in keep if any(letter in name for name in names))
        return keep, np.asarray(contract(",".join(names) + "->" + keep, *tables))
