"""SpaBiT in context: which processes of a bank to believe at a place, and what they miss, from the spots around it.

A network that is trained once, over very many tasks (``training.pretraining``), and predicts on any section without
training there (Müller et al., Transformers can do Bayesian inference, ICLR 2022). It sees one score of expression at a
time. Its tokens are SpaBiT's: image tokens and gene tokens of a place and of the measured spots around it, a graph
attention network among the gene tokens, cross-attention in both directions, a Transformer over the fused tokens. The
exact answers of a bank of Gaussian processes (``kriging.bank``) enter at the place's own token; what comes out attends
to the processes. Initially it adds nothing, and the prediction is the bank's own.

Only distances enter, in space and among image components: turning or mirroring a section changes nothing.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import NamedTuple
from zipfile import BadZipFile

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from spabit_jax.config import GATConfig
from spabit_jax.errors import InputError
from spabit_jax.files import replacing
from spabit_jax.kriging.bank import N_IMAGE, Bank
from spabit_jax.kriging.solved import Answers
from spabit_jax.models.attention import CrossAttention, TransformerLayer
from spabit_jax.models.layers import MLP, linear
from spabit_jax.models.spabit import ContextGAT

N_CONTEXT = 8  # measured spots around a place that it sees as tokens; the processes see all
FAR = 50.0  # pitches: what is further is seen as this far; nothing that it was trained on is
WIDTH, HEADS, DEPTH = 32, 4, 2
LEAST_LOG_WEIGHT, NO_PROCESS = -10.0, -1e30
REMEDY = "make some with experiments.pretrain"
VERSION = 2  # of the weights: another network or another meaning of its inputs has another one
GRAPH = GATConfig(heads=2, head_width=16, n_neighbours=4, dropout=0.0)


class Query(NamedTuple):
    """B scores at places, each with the M - 1 nearest measured spots: token 0 is the place."""

    value: Float[Array, "B M"]  # the score at the spots; 0 at the place
    image: Float[Array, "B M C"]
    offset: Float[Array, "B M d"]  # from the place, in pitches
    mean: Float[Array, "B S"]  # of each process
    variance: Float[Array, "B S"]
    log_weight: Float[Array, "B S"]
    process: Float[Array, "S 11"]  # the logs of its parameters


class Score(NamedTuple):
    """What the network says of B scores."""

    mean: Float[Array, " B"]
    variance: Float[Array, " B"]  # noise aside
    noise: Float[Array, " B"]  # variance of a common spot's noise


def make_query(known, near, xy, image, answers: Answers, bank: Bank) -> Query:
    """All P scores at m places: B = m · P, place by place.

    Args:
      known: xy (n, 2), image (n, C) and scores (n, P) of measured spots.
      near: (m, M - 1) the nearest of them to each place, never itself.
      xy, image: (m, 2), (m, C) of the places.
      answers: of the bank's S processes at the places.
      bank: these.
    """
    around_xy, around_image, scores = (np.asarray(array)[near] for array in known)
    m, n_scores = len(xy), scores.shape[2]
    image = np.concatenate([np.asarray(image)[:, None, :N_IMAGE], around_image[..., :N_IMAGE]], axis=1)
    image = np.pad(image, ((0, 0), (0, 0), (0, N_IMAGE - image.shape[2])))
    offset = around_xy - np.asarray(xy)[:, None]
    offset /= np.maximum(np.linalg.norm(offset, axis=2, keepdims=True) / FAR, 1)
    offset = np.pad(offset, ((0, 0), (1, 0), (0, 0)))
    value = np.pad(scores.swapaxes(1, 2), ((0, 0), (0, 0), (1, 0)))  # (m, P, M)
    logs = np.log(np.concatenate([bank.space, bank.image[:, None], bank.product, bank.variance, bank.noise[:, None]], 1)
                  + 1e-3)  # fmt: skip
    n_processes = len(answers.mean)
    return Query(
        value=value.reshape(m * n_scores, -1),
        image=np.repeat(image, n_scores, axis=0),
        offset=np.repeat(offset, n_scores, axis=0),
        mean=answers.mean.transpose(1, 2, 0).reshape(-1, n_processes),
        variance=np.repeat(answers.variance.T, n_scores, axis=0),
        log_weight=np.tile(np.maximum(answers.log_weight, LEAST_LOG_WEIGHT).T, (m, 1)).astype(np.float32),
        process=logs.astype(np.float32),
    )


def pad(query: Query, n_processes: int, n_queries: int) -> Query:
    """With processes that have no part and scores that nobody asked for, up to so many: one program for all."""
    of_queries = (0, n_queries - len(query.mean))
    query = Query(*(np.pad(x, [of_queries] + [(0, 0)] * (x.ndim - 1), "edge") for x in query[:-1]), query.process)
    more = ((0, 0), (0, n_processes - len(query.process)))
    return query._replace(
        mean=np.pad(query.mean, more),
        variance=np.pad(query.variance, more, constant_values=1),
        log_weight=np.pad(query.log_weight, more, constant_values=NO_PROCESS),
        process=np.pad(query.process, (more[1], (0, 0))),
    )


class InContext(nnx.Module):
    """Predicts scores from what is measured around a place and what the processes of a bank say."""

    def __init__(self, *, rngs: nnx.Rngs):
        self.value_in = MLP(4, WIDTH, WIDTH, rngs=rngs)
        self.image_in = MLP(N_IMAGE, WIDTH, WIDTH, rngs=rngs)
        self.distance_in = linear(3, WIDTH, rngs=rngs)
        self.gat = ContextGAT(WIDTH, GRAPH, rngs=rngs)
        self.image_to_gene = CrossAttention(WIDTH, HEADS, 0.0, rngs=rngs)
        self.gene_to_image = CrossAttention(WIDTH, HEADS, 0.0, rngs=rngs)
        self.fusion = linear(2 * WIDTH, WIDTH, rngs=rngs)
        self.layers = nnx.List(TransformerLayer(WIDTH, HEADS, 8, 2 * WIDTH, rngs=rngs) for _ in range(DEPTH))
        self.parameters_in = MLP(11, WIDTH, WIDTH, rngs=rngs)
        self.said_in = linear(3, WIDTH, rngs=rngs, bias=False)
        self.head = MLP(WIDTH, WIDTH, WIDTH + 2, rngs=rngs)
        self.head.out.kernel[...] = jnp.zeros_like(self.head.out.kernel[...])
        self.head.out.bias[...] = jnp.zeros_like(self.head.out.bias[...])

    def __call__(self, query: Query, symmetric: bool = True, strength: float = 1.0) -> Score:
        """Scores of the B queries.

        Args:
          symmetric: ask for all scores negated, too, so that negated scores give a negated mean.
          strength: factor on the logits of the processes; 0 leaves the bank's own weights.
        """
        asked, n = query, len(query.mean)
        if symmetric:  # in one go: half as much to trace
            negated = query._replace(value=-query.value, mean=-query.mean)
            asked = Query(*map(jnp.concatenate, zip(query[:-1], negated[:-1], strict=True)), query.process)
        logit, correction, scale = self._says(asked)
        if symmetric:
            logit, scale = ((says[:n] + says[n:]) / 2 for says in (logit, scale))
            correction = (correction[:n] - correction[n:]) / 2
        weight = jax.nn.softmax(query.log_weight + strength * logit, axis=1)
        mean = jnp.sum(weight * query.mean, axis=1)
        variance = jnp.sum(weight * (query.variance + (query.mean - mean[:, None]) ** 2), axis=1)
        noise = jnp.sum(weight * jnp.exp(query.process[:, -1]), axis=1)
        return Score(mean + correction * jnp.sqrt(variance), variance * jnp.exp(scale), noise * jnp.exp(scale))

    def _says(self, query: Query):
        """Logits (B, S) of the processes, and (B,) correction of the mean and of the log variance."""
        weight = jnp.exp(query.log_weight)
        mean = jnp.sum(weight * query.mean, axis=1, keepdims=True)
        spread = jnp.sqrt(jnp.sum(weight * (query.variance + (query.mean - mean) ** 2), axis=1, keepdims=True))
        own = jnp.zeros_like(query.value).at[:, 0].set(1.0)
        token = jnp.stack([query.value, own, own * mean, own * spread], axis=-1)
        apart = jnp.linalg.norm(query.offset, axis=-1)
        in_image = jnp.linalg.norm(query.image - query.image[:, :1] + 1e-6, axis=-1)  # a gradient at 0
        place = self.distance_in(jnp.stack([jnp.log1p(apart), apart / 4, in_image / 4], axis=-1))
        image, genes = self.image_in(query.image) + place, self.value_in(token) + place
        genes += self.gat(genes, query.offset)
        fused = [self.image_to_gene(image, genes), self.gene_to_image(genes, image)]
        x = self.fusion(jnp.concatenate(fused, axis=-1))
        for layer in self.layers[:-1]:
            x = layer(x)
        out = self.head(self.layers[-1](x, wanted=1)[:, 0])
        said = [(query.mean - mean) / spread, jnp.log(query.variance / spread**2 + 1e-6)]
        said.append(jnp.maximum(query.log_weight, LEAST_LOG_WEIGHT) / 5)
        asked = out[:, :-2] * WIDTH**-0.5
        by_parameters = asked @ self.parameters_in(query.process).T
        of_said = asked @ self.said_in.kernel[...].T  # (B, 3)
        logit = by_parameters + jnp.einsum("bk,bsk->bs", of_said, jnp.stack(said, axis=-1))
        return logit, out[:, -2], out[:, -1]


def new_network(seed: int):
    """Graph definition and parameters of a new network."""
    return nnx.split(InContext(rngs=nnx.Rngs(seed)))


@cache
def _shape_of_network():
    return nnx.split(nnx.eval_shape(lambda: InContext(rngs=nnx.Rngs(0))))


def save_weights(path: str | Path, banks: tuple[Bank, Bank], params) -> None:
    """Writes the banks of both passes and a network's parameters, these in half precision, as .npz."""
    leaves = {f"network{i}": np.asarray(leaf, np.float16) for i, leaf in enumerate(jax.tree.leaves(params))}
    fields = {f"{name}{i}": field for i, bank in enumerate(banks) for name, field in bank._asdict().items()}
    with replacing(path) as temporary:
        np.savez(temporary, version=VERSION, **fields, **leaves)


def load_weights(path: str | Path):
    """What ``save_weights`` wrote: the banks of both passes, graph definition and parameters.

    Raises:
      InputError: the file is no such one, or of another version.
    """
    try:
        with open(path, "rb") as file:
            content = dict(np.load(file))
        if (version := int(content["version"])) == VERSION:
            graphdef, params = _shape_of_network()
            leaves, tree = jax.tree.flatten(params)
            found = [np.asarray(content[f"network{i}"], old.dtype).reshape(old.shape) for i, old in enumerate(leaves)]
            banks = tuple(Bank(*(content[f"{name}{i}"] for name in Bank._fields)) for i in range(2))
            return banks, graphdef, jax.tree.unflatten(tree, found)
    except (OSError, ValueError, TypeError, KeyError, EOFError, BadZipFile) as error:
        raise InputError(f"{path}: no weights of a pretrained SpaBiT ({error}): {REMEDY}") from error
    raise InputError(f"{path}: weights of version {version}, and this is {VERSION}: {REMEDY}")
