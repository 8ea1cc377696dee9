"""SpaBiT: bidirectional cross-attention between image and gene tokens, then a Transformer.

A spot is seen through M tokens of each kind: token 0 is the spot itself, tokens 1 to M - 1 are its context, the nearest
train spots. With ``faults.single_key`` M is 1, which is the reference.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float

from spabit_jax.config import Config
from spabit_jax.data.graphs import make_graph
from spabit_jax.models.attention import CrossAttention, TransformerLayer
from spabit_jax.models.graph_attention import GAT
from spabit_jax.models.layers import MLP, linear


class Tokens(NamedTuple):
    """What the model sees of B spots."""

    image: Float[Array, "B M D"]  # image features; D is 0 without an image
    genes: Float[Array, "B M G"]  # expression; of token 0, imputed
    offset: Float[Array, "B M 2"]  # position relative to the spot, in units of the spot pitch


class SpaBiT(nnx.Module):
    """Predicts the expression of spots from image and gene tokens."""

    def __init__(self, n_genes: int, n_features: int, config: Config, *, rngs: nnx.Rngs):
        model, faults = config.model, config.faults
        width = model.width
        self.batch_attention, self.relu_output = faults.batch_attention, faults.relu_output
        raw_image = config.data.image_transform == "reference"
        self.image_in = None if raw_image else ImageEmbedding(n_features, width, rngs=rngs)
        self.gene_in = MLP(n_genes, model.mlp_width, width, rngs=rngs)
        self.offset_in = None if faults.single_key else linear(4, width, rngs=rngs)
        self.gat = ContextGAT(width, config.gat, rngs=rngs) if config.gat.joint else None

        def cross_attention(direction):
            if model.cross_attention in ("both", direction):
                return CrossAttention(width, model.cross_heads, model.cross_dropout, rngs=rngs)
            return None

        self.image_to_gene = cross_attention("image_to_gene")
        self.gene_to_image = cross_attention("gene_to_image")
        self.fusion = linear((2 if model.cross_attention == "both" else 1) * width, width, rngs=rngs)
        self.layers = nnx.List(
            TransformerLayer(width, model.heads, model.head_width, model.feedforward_width, rngs=rngs)
            for _ in range(model.depth)
        )
        self.head = MLP(width, model.mlp_width, n_genes, rngs=rngs)
        self.mix = NeighbourMix(width, rngs=rngs) if model.residual else None
        if model.residual:
            self.head.out.kernel[...] = jnp.zeros_like(self.head.out.kernel[...])
            self.head.out.bias[...] = jnp.zeros_like(self.head.out.bias[...])

    def __call__(
        self, tokens: Tokens, valid: Bool[Array, " B"] | None = None, *, key: jax.Array | None = None
    ) -> Float[Array, "B G"]:
        """Expression of each spot.

        Args:
          tokens: of B spots.
          valid: False for padding, which nothing may attend to.
          key: for dropout; none in evaluation.
        """
        keys = [None] * 3 if key is None else jax.random.split(key, 3)
        image = tokens.image if self.image_in is None else self.image_in(tokens.image)
        genes = self.gene_in(tokens.genes)
        distance = jnp.linalg.norm(tokens.offset, axis=-1, keepdims=True)
        if self.offset_in is not None:
            place = self.offset_in(jnp.concatenate([tokens.offset, distance, jnp.log1p(distance)], axis=-1))
            image, genes = image + place, genes + place
        if self.gat is not None:
            genes += self.gat(genes, tokens.offset, key=keys[0])

        fused = []
        if self.image_to_gene is not None:
            fused.append(self.image_to_gene(image, genes, key=keys[1]))
        if self.gene_to_image is not None:
            fused.append(self.gene_to_image(genes, image, key=keys[2]))
        x = self.fusion(jnp.concatenate(fused, axis=-1))  # (B, M, W)
        if self.batch_attention:
            x = x[None, :, 0]
        for layer in self.layers:
            x = layer(x, valid if self.batch_attention else None)
        spot = x[0] if self.batch_attention else x[:, 0]

        out = self.head(spot)
        if self.mix is not None:
            out += self.mix(x, distance[..., 0], tokens.genes)
        return nnx.relu(out) if self.relu_output else out


class ImageEmbedding(nnx.Module):
    """(…, D) image features → (…, W); a learned constant where the section has no image."""

    def __init__(self, n_features: int, width: int, *, rngs: nnx.Rngs):
        self.n_features = n_features
        self.linear = linear(max(n_features, 1), width, rngs=rngs)

    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B W"]:
        return self.linear(x if self.n_features else jnp.ones((*x.shape[:-1], 1), x.dtype))


class ContextGAT(nnx.Module):
    """GAT over the tokens of each spot: a token has the nearest context tokens as neighbours, maybe itself.

    Its edges carry a bias that falls with the distance between the two tokens, at a learned rate.
    """

    def __init__(self, width: int, config, *, rngs: nnx.Rngs):
        self.gat = GAT(width, config.heads, config.head_width, width, config.dropout, rngs=rngs)
        self.n_neighbours = config.n_neighbours
        self.decay = nnx.Param(jnp.zeros(()))

    def __call__(self, genes: Float[Array, "B M W"], offset: Float[Array, "B M d"], *, key=None):
        """(B, M, W) gene tokens → (B, M, W) their embedding among their neighbours."""
        b, m, width = genes.shape
        distance = jnp.linalg.norm(offset[:, :, None] - offset[:, None, 1:], axis=-1)  # (B, M, M - 1)
        closeness, nearest = jax.lax.top_k(-distance, min(self.n_neighbours + 1, m - 1))  # (B, M, k)
        first = m * np.arange(b)[:, None, None]
        graph = make_graph(
            (first + 1 + nearest).ravel(),
            np.repeat(np.arange(b * m), nearest.shape[-1]),
            n_node=b * m,
            edges=nnx.softplus(self.decay[...]) * closeness.reshape(-1, 1),
        )
        return self.gat(genes.reshape(b * m, width), graph, key=key).reshape(b, m, width)


class NeighbourMix(nnx.Module):
    """Mean of the context's expression, weighted by attention and by distance."""

    def __init__(self, width: int, *, rngs: nnx.Rngs):
        self.query = linear(width, width, rngs=rngs)
        self.key = linear(width, width, rngs=rngs)
        self.query.kernel[...] = jnp.zeros_like(self.query.kernel[...])
        self.query.bias[...] = jnp.zeros_like(self.query.bias[...])
        self.decay = nnx.Param(jnp.zeros(()))

    def __call__(self, x: Float[Array, "B M W"], distance: Float[Array, "B M"], genes: Float[Array, "B M G"]):
        """Fused tokens, their distances and gene tokens → (B, G)."""
        score = jnp.einsum("bw,bmw->bm", self.query(x[:, 0]), self.key(x[:, 1:])) * x.shape[-1] ** -0.5
        weight = jax.nn.softmax(score - nnx.softplus(self.decay[...]) * distance[:, 1:], axis=-1)
        return jnp.einsum("bm,bmg->bg", weight, genes[:, 1:])
