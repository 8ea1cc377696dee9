"""Training of SpaBiT on the train spots of a section."""

from __future__ import annotations

from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from spabit_jax.chunks import filled
from spabit_jax.config import Config
from spabit_jax.data.components import Space, expression_space
from spabit_jax.data.section import Places, Section
from spabit_jax.errors import InputError
from spabit_jax.models import find_model
from spabit_jax.models.layers import merged, untrained
from spabit_jax.models.spabit import Tokens
from spabit_jax.training import devices
from spabit_jax.training.fit import (
    FitState,
    fit,
    fit_seeds,
    initial_state,
    make_chunk,
    on_this_device,
    restore,
    seed_keys,
)
from spabit_jax.training.losses import find_loss

OWN = ("space", "fit_spots", "valid_spots")  # fields of TrainingData that are each seed's own
FOLDS = 5  # of the train spots, of which each seed leaves one for the weights


class TrainingData(NamedTuple):
    """What an epoch sees: a pytree of arrays."""

    section: Section
    space: Space  # the model's inputs and outputs are scores in it
    gene_tokens: Any  # (P, N, G) and
    part: Any  # (N,) of ``reference.separate_gat.gene_tokens``; both None where the GAT is trained within the model
    fit_spots: Any  # (n,) spots whose expression is a target
    valid_spots: Any  # (m,) train spots held out for early stopping; (0,) without


def gather_tokens(
    data: TrainingData, places: Places, config: Config, spots=None, key: jax.Array | None = None
) -> Tokens:
    """Image and gene tokens of B places: the place itself, then its context.

    A spot's own expression is not among them, unless ``faults.self_in_gene_token`` is on.

    Args:
      spots: (B,) which spots the places are; only what the reference does needs it.
      key: hides each context spot with probability ``train.neighbour_dropout``; the next nearest take its place.
    """
    section = data.section
    around = jnp.zeros((len(places.xy), 0), jnp.int32)  # (B, M - 1)
    if not config.faults.single_key:
        context = places.context  # (B, pool)
        n_context = min(config.model.n_context, context.shape[1])
        if key is not None and config.train.neighbour_dropout:
            hidden = jax.random.bernoulli(key, config.train.neighbour_dropout, context.shape)
            order = jnp.argsort(jnp.arange(context.shape[1]) + hidden * context.shape[1], axis=1)
            context = jnp.take_along_axis(context, order, axis=1)
        around = context[:, :n_context]

    if data.gene_tokens is not None:
        genes = data.gene_tokens[data.part[spots][:, None], jnp.concatenate([spots[:, None], around], axis=1)]
    else:
        measured = section.expression[around]
        own = measured[:, : config.gat.n_neighbours].mean(axis=1)
        if config.faults.self_in_gene_token:
            own = jnp.where(section.is_train[spots][:, None], section.expression[spots], own)
        genes = jnp.concatenate([own[:, None], measured], axis=1)
    return Tokens(
        image=jnp.concatenate([places.image[:, None], section.image[around]], axis=1),
        genes=data.space.encode(genes),
        offset=jnp.concatenate([places.xy[:, None], section.xy[around]], axis=1) - places.xy[:, None],
    )


def spabit_optimizer(config: Config) -> optax.GradientTransformation:
    """AdamW; Adam where there is no weight decay, as in the reference."""
    return optax.adamw(config.train.learning_rate, weight_decay=config.train.weight_decay)


def spabit_loss(graphdef, config: Config, params, data: TrainingData, spots, key):
    """The loss of ``config.train.loss`` over (B,) spots; without a key in evaluation."""
    keys = [None] * 2 if key is None else jax.random.split(key)
    tokens = gather_tokens(data, data.section.places(spots), config, spots, keys[0])
    predicted = merged(graphdef, params, training=key is not None)(tokens, key=keys[1])
    if predicted.shape != (wanted := (len(spots), len(data.space.loadings))):
        raise InputError(f"model {config.model.name} gives {predicted.shape}, not a score of each spot {wanted}")
    loss = find_loss(config.train.loss)(predicted, data.section.expression[spots], data.space)
    if jnp.shape(loss) != ():
        raise InputError(f"loss {config.train.loss} gives {jnp.shape(loss)}, not one number: take its mean")
    return loss


def make_spabit_epoch(graphdef, config: Config, spread=lambda spots: spots):
    """One pass over the train spots, or ``train.epoch_spots`` of them, in shuffled batches, the last one short.

    ``spread`` says how the spots of a batch lie on several devices.
    """
    optimizer = spabit_optimizer(config)

    def loss_fn(params, data, spots, key):
        return spabit_loss(graphdef, config, params, data, spread(spots), key)

    def epoch(data: TrainingData, params, state, key):
        n = at_most(len(data.fit_spots), config.train.epoch_spots)
        size = min(config.train.batch_size, n)
        n_full, n_last = divmod(n, size)
        order = jax.random.permutation(key, data.fit_spots)[:n]

        def step(carry, batch):
            params, state = carry
            spots, i = batch
            loss, gradient = jax.value_and_grad(loss_fn)(params, data, spots, jax.random.fold_in(key, i + 1))
            update, state = optimizer.update(gradient, state, params)
            return (optax.apply_updates(params, update), state), loss * len(spots) / n

        batches = order[: n - n_last].reshape(n_full, size), jnp.arange(n_full)
        carry, losses = jax.lax.scan(step, (params, state), batches)
        loss = losses.sum()
        if n_last:
            carry, last = step(carry, (order[n - n_last :], n_full))
            loss += last
        params, state = carry
        valid_loss = jnp.nan
        if len(data.valid_spots):
            valid_loss = loss_fn(params, data, data.valid_spots, None)
        return params, state, loss, valid_loss

    return epoch


def at_most(n: int, most: int) -> int:
    """The lesser; n where ``most`` is 0."""
    return min(n, most or n)


class Parts(NamedTuple):
    """Train spots of a seed, three parts of one whole. The expression of all stays visible as context to neighbours."""

    fitted: np.ndarray  # (n,) targets
    valid: np.ndarray  # those that decide when it stops
    unseen: np.ndarray  # for weights and uncertainty: at those that stop it its error is the lowest of many epochs'


def part_spots(train_spots: np.ndarray, config: Config, seed: int) -> Parts:
    """The unseen ones are another fifth with each of five seeds.

    With fewer than 5 train spots one is both valid and unseen; with ``faults.no_validation`` all are fitted to.
    """
    if config.faults.no_validation:
        return Parts(train_spots, train_spots[:0], train_spots[:0])
    order = np.asarray(jax.random.permutation(jax.random.key(0), train_spots))
    if len(order) < FOLDS:
        return Parts(np.sort(order[1:]), order[:1], order[:1])
    size = len(order) // FOLDS  # the same for all seeds: one compilation
    unseen = np.sort(order[seed % FOLDS * size :][:size])
    others = np.asarray(jax.random.permutation(seed_keys(seed)[2], np.setdiff1d(order, unseen)))
    n = at_most(round(config.train.validation_fraction * len(order)), config.train.epoch_spots)
    n = min(max(1, n), len(others) - 2)
    return Parts(np.sort(others[n:]), np.sort(others[:n]), unseen)


class Trainer:
    """Trains and applies the model of a configuration to a section; what it compiles is shared by the seeds.

    Attributes:
      config: of the run.
      section: N spots, G genes.
      train_spots: (n,) indices.
      graphdef: of the model, static.
    """

    def __init__(self, section: Section, config: Config, gene_tokens=None, part=None):
        self.config = config
        self.section = section
        self.train_spots = np.flatnonzero(section.is_train).astype(np.int32)
        self.data = jax.tree.map(jnp.asarray, TrainingData(section, self.space(0), gene_tokens, part, None, None))
        n_scores, n_features = self.data.space.loadings.shape[0], section.image.shape[1]
        new_model = partial(find_model(config.model.name), n_scores, n_features, config)
        graphdef, self._new_params = untrained(lambda rngs: new_model(rngs=rngs))
        self.graphdef = graphdef
        self._chunk = make_chunk(make_spabit_epoch(graphdef, config))
        self._loop = {"chunk_epochs": config.train.chunk_epochs, "patience": config.train.patience}

        def apply(whole, part):
            (params, data), (places, spots, valid) = whole, part
            tokens = gather_tokens(data, places, config, spots)
            return data.space.decode(merged(graphdef, params, training=False)(tokens, valid))

        self._apply = devices.over_devices(apply)

    def space(self, seed: int) -> Space:
        """Of a seed: made of the train spots that it is fitted to."""
        return expression_space(self.section.expression[self.parts(seed).fitted], self.config.model.n_components)

    def initial_state(self, seed: int) -> FitState:
        """State before the first epoch."""
        params = self._new_params(seed_keys(seed)[0])
        validated = not self.config.faults.no_validation
        return initial_state(params, spabit_optimizer(self.config), self.config.train.epochs, validated)

    def parts(self, seed: int) -> Parts:
        """What a seed does with each train spot."""
        return part_spots(self.train_spots, self.config, seed)

    def fit(self, seed: int, folder=None) -> FitState:
        """Trains one seed, or continues from the checkpoints in ``folder``.

        The expression of the spots that it is not fitted to stays visible as context to their neighbours.
        """
        return fit(
            self.initial_state(seed),
            self._chunk,
            self.training_data(seed),
            seed_keys(seed)[1],
            folder=folder,
            title=self._title(seed),
            **self._loop,
        )

    def _title(self, seed: int) -> str:
        return f"{self.config.name}, seed {seed}"

    def fit_seeds(self, seeds: list[int], folder=None) -> list[FitState]:
        """Trains seeds, each with its checkpoints in ``folder/seed_i``: at once where ``devices.seeds_at_once``."""
        folders = {seed: None if folder is None else Path(folder) / f"seed_{seed}" for seed in seeds}
        if not devices.seeds_at_once():
            return [self.fit(seed, folders[seed]) for seed in seeds]
        mesh = devices.make_mesh(len(seeds))
        epoch = make_spabit_epoch(self.graphdef, self.config, devices.spread)
        chunk = devices.make_chunk_of_seeds(epoch, mesh)
        memory = jax.local_devices()[0].memory_stats()
        most = devices.seeds_that_fit(len(seeds), mesh, *self._shapes(seeds[0]), memory)
        states = []
        for group in (part.tolist() for part in np.array_split(seeds, -(-len(seeds) // most))):
            own = [{name: getattr(self.training_data(seed), name) for name in OWN} for seed in group]
            fitted = fit_seeds(
                [self.initial_state(seed) for seed in group],
                chunk,
                devices.everywhere((self.data, own), mesh),
                [seed_keys(seed)[1] for seed in group],
                folders=[folders[seed] for seed in group],
                titles=[self._title(seed) for seed in group],
                **self._loop,
            )
            states += on_this_device(fitted)
        return states

    def _shapes(self, seed: int):
        """Shapes of a seed's state, and of what the backward pass of a batch keeps."""
        state = jax.eval_shape(partial(self.initial_state, seed))
        spots = jax.ShapeDtypeStruct((self.config.train.batch_size,), jnp.int32)

        def residuals(params, data, spots, key):
            loss = partial(spabit_loss, self.graphdef, self.config, data=data, spots=spots, key=key)
            return jax.vjp(loss, params)[1]

        return state, jax.eval_shape(residuals, state.params, self.training_data(seed), spots, jax.random.key(0))

    def training_data(self, seed: int) -> TrainingData:
        """What the epochs of a seed see."""
        parts = self.parts(seed)
        return self.data._replace(space=self.space(seed), fit_spots=parts.fitted, valid_spots=parts.valid)

    def restore(self, seed: int, folder) -> FitState:
        """The state that a finished ``fit`` left in ``folder``; InputError if it is not there or not finished."""
        return restore(jax.eval_shape(partial(self.initial_state, seed)), folder)

    @cached_property
    def _data_on_each(self) -> TrainingData:
        return devices.on_each(self.data)

    def predict(self, params, spots, seed: int) -> np.ndarray:
        """Predicted expression of (n,) spots, (n, G), with the parameters of a seed.

        With ``faults.batch_attention`` the prediction depends on the batches, which the seed shuffles.
        """
        spots = np.asarray(spots, np.int32)
        order = np.arange(len(spots))
        if self.config.faults.batch_attention:
            order = np.asarray(jax.random.permutation(jax.random.key(seed), len(spots)))
        out = np.empty((len(spots), self.section.expression.shape[1]), np.float32)
        out[order] = self._in_batches(params, self.section.places(spots[order]), spots[order], seed)
        return out

    def predict_at(self, params, places: Places, seed: int) -> np.ndarray:
        """Predicted expression at n places, (n, G), with the parameters of a seed; not what only spots have."""
        return self._in_batches(params, places, None, seed)

    def _in_batches(self, params, places: Places, spots, seed: int) -> np.ndarray:
        n, size = len(places.xy), self.config.train.batch_size * jax.local_device_count()
        whole = devices.on_each(params), self._data_on_each._replace(space=self.space(seed))
        out = np.empty((n, self.section.expression.shape[1]), np.float32)
        for rows, batch in filled(n, size):
            valid = np.arange(size) < rows.stop - rows.start
            part = Places(*(array[batch] for array in places)), None if spots is None else spots[batch]
            out[rows] = self._apply(whole, (*part, valid))[: rows.stop - rows.start]
        return out
