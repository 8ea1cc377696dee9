"""Graphs of places, as jraph has them."""

from __future__ import annotations

import numpy as np
from jraph import GraphsTuple


def make_graph(senders, receivers: np.ndarray, n_node: int, edges=None) -> GraphsTuple:
    """A graph without node features, its edges sorted by receiver, as ``models.graph_attention`` needs them.

    Args:
      senders, receivers: (E,) nodes.
      edges: (E, H) biases, or None.
    """
    if np.any(np.diff(receivers) < 0):
        order = np.argsort(receivers, kind="stable")
        senders, receivers, edges = senders[order], receivers[order], None if edges is None else edges[order]
    return GraphsTuple(
        nodes=None,
        edges=edges,
        senders=senders,
        receivers=receivers,
        n_node=np.array([n_node]),
        n_edge=np.array([len(senders)]),
        globals=None,
    )
