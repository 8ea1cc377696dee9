"""Graph attention over neighbouring expression, on the graphs of jraph.

``GATRegressor`` is the reference's separate network, whose reconstruction of expression becomes the gene tokens;
``GAT``, its two attention layers, also embeds the context of each spot inside ``SpaBiT``.
Velickovic et al., Graph Attention Networks, ICLR 2018, as the reference computes it.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import jraph
from flax import nnx
from jaxtyping import Array, Float
from jraph import GraphsTuple

from spabit_jax.models.layers import MLP, uniform
from spabit_jax.ops.neighbour_sum import neighbour_sum


class GraphAttention(nnx.Module):
    """One attention layer of H heads of width F; heads are concatenated.

    e = LeakyReLU₀.₀₁(a_src · Wh[sender] + a_dst · Wh[receiver] + bias); weights are exp(e − max over all edges) over
    (their sum at the receiver + 1e-9); a node without edges gets zeros. Where edges have biases the maximum is that of
    the receiver's edges: in a batch of small graphs a large score in one must not press those of the others under 1e-9.
    """

    def __init__(self, n_in: int, heads: int, head_width: int, dropout: float, *, rngs: nnx.Rngs):
        self.shape = (heads, head_width)
        self.kernel = nnx.Param(uniform(n_in**-0.5)(rngs.params(), (n_in, heads * head_width)))
        xavier = uniform(1.414 * (6 / (head_width + 1)) ** 0.5)
        self.sender = nnx.Param(xavier(rngs.params(), self.shape))
        self.receiver = nnx.Param(xavier(rngs.params(), self.shape))
        self.dropout = nnx.Dropout(dropout)

    def __call__(self, x: Float[Array, "N I"], graph: GraphsTuple, *, key: jax.Array | None = None):
        """(N, I) node features → (N, H·F); in training the key is for dropout on the attention weights."""
        n = len(x)
        h_NxHxF = (x @ self.kernel[...]).reshape(n, *self.shape)
        kernel_IxHxF = self.kernel[...].reshape(-1, *self.shape)
        # a · Wh = (a W) · h: (N, H) from the narrower side
        from_sender = x @ jnp.einsum("ihf,hf->ih", kernel_IxHxF, self.sender[...])
        at_receiver = x @ jnp.einsum("ihf,hf->ih", kernel_IxHxF, self.receiver[...])
        score = from_sender[graph.senders] + at_receiver[graph.receivers]  # (E, H)
        if graph.edges is not None:
            score += graph.edges
        score = jax.nn.leaky_relu(score, 0.01)
        highest = score.max(axis=0)
        if graph.edges is not None:
            highest = jraph.segment_max(score, graph.receivers, n, indices_are_sorted=True)[graph.receivers]
        weight = jnp.exp(score - highest)  # the 1e-9 below makes the maximum count, in the gradient too
        total = jraph.segment_sum(weight, graph.receivers, n, indices_are_sorted=True)
        weight = self.dropout(weight / (total[graph.receivers] + 1e-9), rngs=key)
        return neighbour_sum(weight, h_NxHxF, *map(jnp.asarray, (graph.senders, graph.receivers))).reshape(n, -1)


class GAT(nnx.Module):
    """Dropout, a layer of several heads with ELU, dropout, and a layer of one head."""

    def __init__(self, n_in: int, heads: int, head_width: int, n_out: int, dropout: float, *, rngs: nnx.Rngs):
        self.hidden = GraphAttention(n_in, heads, head_width, dropout, rngs=rngs)
        self.out = GraphAttention(heads * head_width, 1, n_out, dropout, rngs=rngs)
        self.dropout = nnx.Dropout(dropout)

    def __call__(self, x: Float[Array, "N I"], graph: GraphsTuple, *, key: jax.Array | None = None):
        """(N, I) → (N, n_out)."""
        keys = [None] * 4 if key is None else jax.random.split(key, 4)
        x = self.dropout(x, rngs=keys[0])
        x = nnx.elu(self.hidden(x, graph, key=keys[1]))
        x = self.dropout(x, rngs=keys[2])
        return self.out(x, graph, key=keys[3])


class GATRegressor(nnx.Module):
    """The reference's GAT: trained to give back its own input, its output is used in place of that input."""

    def __init__(self, n_genes: int, config, *, rngs: nnx.Rngs):
        self.gat = GAT(n_genes, config.heads, config.head_width, config.out_width, config.dropout, rngs=rngs)
        self.head = MLP(config.out_width, config.mlp_width, n_genes, rngs=rngs)

    def __call__(self, x: Float[Array, "N G"], graph: GraphsTuple, *, key: jax.Array | None = None):
        """(N, G) expression → its reconstruction, (N, G)."""
        return self.head(self.gat(x, graph, key=key))
