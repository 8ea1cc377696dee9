"""Pretraining of ``models.in_context`` on tasks made on the fly.

A task is a set of places with image components, some of them known spots, and a response: a random process of space and
image, with sharp borders, bent or skewed in some tasks, and noise of random size. No measured expression is in it. What
is learned is to predict each place from the known spots, and each known spot from the others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from scipy.spatial import KDTree
from tqdm.auto import tqdm

from spabit_jax.chunks import filled
from spabit_jax.kriging.bank import Bank, Inputs, covariance, draw_bank, pairs, without_image
from spabit_jax.kriging.solved import Solved
from spabit_jax.models.in_context import N_CONTEXT, N_IMAGE, Query, make_query, new_network
from spabit_jax.models.layers import merged
from spabit_jax.training.fit import going_on, initial_state, save_state

RESPONSES, KINDS = 32, 8  # of a task; so many random processes among them
BATCH, STEPS = 1024, 4  # scores a step, steps a task
RATE = 1e-3  # of learning, at most
N_VALID = 12  # tasks
VALID_EVERY = 50  # tasks


class Geometry(NamedTuple):
    """Where a task happens: N places in pitches, and their image components."""

    xy: np.ndarray  # (N, 2)
    image: np.ndarray  # (N, C); C is 0 without an image


class Task(NamedTuple):
    """A geometry with P responses at all N places, of which the first n are known."""

    geometry: Geometry
    n_known: int
    noise: np.ndarray  # (N,) relative variance of the noise
    scores: np.ndarray  # (N, P) with noise, at mean 0 and variance 1 over the known spots
    exact: np.ndarray  # (N - n, P) what the process that was drawn predicts; NaN where the response is none


def simulated_geometry(rng: np.random.Generator) -> Geometry:
    """A jittered lattice of 600 places; image components that are random fields of several ranges, ever smaller."""
    rows, columns = np.divmod(np.arange(600), 25)
    xy = np.stack([columns + rows % 2 / 2, rows * 3**0.5 / 2], axis=1) + rng.normal(0, 0.05, (600, 2))
    if rng.random() < 0.2:
        return Geometry(xy.astype(np.float32), np.zeros((600, 0), np.float32))
    reach = np.exp(rng.uniform(np.log(1.5), np.log(12), (N_IMAGE, 1, 1)))
    wave = rng.standard_normal((N_IMAGE, 64, 2)) / reach
    phase = rng.uniform(0, 2 * np.pi, (N_IMAGE, 64))
    field = np.sqrt(2 / 64) * np.cos(np.einsum("nd,cwd->ncw", xy, wave) + phase).sum(axis=2)
    rough = rng.uniform(0.1, 0.7, N_IMAGE)
    size = np.cumprod(np.r_[1, rng.uniform(0.75, 0.97, N_IMAGE - 1)])
    image = (np.sqrt(1 - rough) * field + np.sqrt(rough) * rng.standard_normal(field.shape)) * size
    return Geometry(xy.astype(np.float32), image.astype(np.float32))


def make_task(rng: np.random.Generator, geometries: Sequence[Geometry]) -> Task:
    """A task on one of the geometries, or on a simulated one where there are none."""
    if geometries:
        xy, image = geometries[rng.integers(len(geometries))]
    else:
        xy, image = simulated_geometry(rng)
    n = min(int(np.exp(rng.uniform(np.log(60), np.log(500)))), len(xy))
    around = KDTree(xy).query(xy[rng.integers(len(xy))], k=n)[1]
    chosen = rng.permutation(around)
    n_known = max(20, int(len(chosen) * rng.uniform(0.25, 0.7)))
    xy = (xy[chosen] - xy[chosen].mean(axis=0)) * np.exp(rng.normal(0, 0.2))
    image = image[chosen] * np.exp(rng.normal(0, 0.1))
    if image.shape[1] and rng.random() < 0.15:
        image = image[:, :0]
    noise = np.exp(rng.normal(0, rng.choice([0, 0.3, 0.6]), len(xy)))
    scores, exact = zip(*(_responses(rng, xy, image, noise, n_known) for _ in range(KINDS)), strict=True)
    scores, exact = np.concatenate(scores, axis=1), np.concatenate(exact, axis=1)
    mean, sd = scores[:n_known].mean(axis=0), np.maximum(scores[:n_known].std(axis=0), 1e-3)
    geometry = Geometry(xy.astype(np.float32), image.astype(np.float32))
    return Task(geometry, n_known, noise, (scores - mean) / sd, (exact - mean) / sd)


def _responses(rng, xy, image, noise, n_known) -> tuple[np.ndarray, np.ndarray]:
    """Responses of one random process, (N, RESPONSES / KINDS), and what it predicts at the places not known."""
    drawn = draw_bank(rng, 1, rng.uniform(0.05, 0.95, 1))  # any share of noise
    process = (drawn if image.shape[1] else without_image(drawn)).at(0)
    places = Inputs.of(xy, image)
    signal = np.array(covariance(process, pairs(places, places)), np.float64)
    factor = np.linalg.cholesky(signal + 1e-4 * np.eye(len(xy)))
    count = RESPONSES // KINDS
    smooth = factor @ rng.standard_normal((len(xy), count))
    kind = rng.choice(["gaussian", "borders", "skewed", "bent"], p=[0.4, 0.25, 0.15, 0.2])
    unit = np.sqrt(np.diagonal(signal).mean())
    if kind == "borders":  # domains with levels of their own, and a little of the process within
        other = factor @ rng.standard_normal((len(xy), count))
        level = rng.standard_normal((3, count))
        domain = (smooth > 0.3 * unit).astype(int) + (other > 0)
        smooth = unit * np.take_along_axis(level, domain, axis=0) + 0.3 * smooth
    elif kind == "skewed":
        smooth = unit * np.exp(0.8 * smooth / unit)
    elif kind == "bent" and image.shape[1]:  # a random network of the image
        hidden = np.tanh(image @ rng.standard_normal((image.shape[1], 16)) / np.sqrt(image.var(axis=0).sum()))
        smooth = 0.5 * smooth + unit * hidden @ rng.standard_normal((16, count)) / 4
    scores = smooth + np.sqrt(process.noise * noise)[:, None] * rng.standard_normal(smooth.shape)
    exact = np.full((len(xy) - n_known, count), np.nan)
    if kind == "gaussian":
        known = slice(n_known)
        noisy = signal[known, known] + np.diag(process.noise * noise[known])
        exact = signal[n_known:, known] @ np.linalg.solve(noisy, scores[known])
    return scores, exact


def queries(task: Task, bank: Bank) -> tuple[Query, np.ndarray, np.ndarray]:
    """What the network sees of a task: scores at the places not known, then at the known spots, each without itself.

    Args:
      bank: S processes.

    Returns:
      The query of B scores; their targets (B,); the relative variance of the targets' noise (B,).
    """
    xy, image = task.geometry
    n = task.n_known
    known = xy[:n], image[:n], task.scores[:n].astype(np.float32)
    bank = bank if image.shape[1] else without_image(bank)
    solved = Solved(bank, Inputs.of(*known[:2]), task.noise[:n], known[2], prune=False)
    tree = KDTree(xy[:n])
    at_others = solved.at(Inputs.of(xy[n:], image[n:])), tree.query(xy[n:], k=N_CONTEXT)[1], slice(n, None)
    at_known = solved.left_out(), tree.query(xy[:n], k=N_CONTEXT + 1)[1][:, 1:], slice(n)
    parts = [make_query(known, near, xy[rows], image[rows], a, solved.bank) for a, near, rows in (at_others, at_known)]
    fields = {name: np.concatenate([getattr(part, name) for part in parts]) for name in Query._fields[:-1]}
    order = np.r_[n : len(xy), :n]
    noise = np.repeat(task.noise[order], task.scores.shape[1])
    return Query(**fields, process=parts[0].process), task.scores[order].ravel(), noise


def loss(graphdef, params, query: Query, target, noise):
    """Minus the log density of normal predictions: of each score, with the noise of the mixture's processes."""
    score = merged(graphdef, params, training=True)(query, symmetric=False)
    variance = score.variance + score.noise * noise
    return jnp.mean(0.5 * (target - score.mean) ** 2 / variance + 0.5 * jnp.log(variance))


def make_step(graphdef, optimizer):
    """Jits a step of training: (params, optimizer state, query, target, noise) → params, state, loss."""

    @jax.jit
    def step(params, state, query, target, noise):
        value, gradient = jax.value_and_grad(partial(loss, graphdef))(params, query, target, noise)
        update, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, update), state, value

    return step


def pretrain(
    bank: Bank,
    n_tasks: int,
    geometries: Sequence[Geometry] = (),
    seed: int = 0,
    folder: Path | None = None,
    report: Callable[[dict], None] = lambda row: None,
):
    """Trains the network on so many tasks.

    Args:
      bank: whose processes it weighs.
      n_tasks: each gives a few steps.
      geometries: of the tasks; simulated ones where there are none.
      seed: of tasks and parameters. The same seed gives the same weights, interrupted or not.
      folder: of checkpoints, from which an interrupted training goes on; None keeps none.
      report: gets a row of errors every ``VALID_EVERY`` tasks (``validate``).

    Returns:
      The parameters.
    """
    graphdef, params = new_network(seed)
    n_steps = STEPS * n_tasks
    schedule = optax.warmup_cosine_decay_schedule(0, RATE, min(200, n_steps // 4), n_steps, RATE / 100)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, weight_decay=1e-4))
    step = make_step(graphdef, optimizer)
    state = initial_state(params, optimizer, n_tasks, validated=False)
    state = going_on(state, folder)
    valid = [make_task(np.random.default_rng([seed, 1, i]), geometries) for i in range(N_VALID)]
    for i in tqdm(range(int(state.epoch), n_tasks), "tasks", initial=int(state.epoch), total=n_tasks, disable=None):
        rng = np.random.default_rng([seed, 0, i])
        query, target, noise = queries(make_task(rng, geometries), bank)
        order = rng.permutation(len(target))[: STEPS * BATCH]
        order = np.resize(order, STEPS * BATCH).reshape(STEPS, BATCH)  # small tasks come more than once
        params, moments, losses = state.params, state.optimizer, state.losses
        for rows in order:
            part = Query(*(field[rows] for field in query[:-1]), query.process)
            params, moments, value = step(params, moments, part, target[rows], noise[rows])
        state = state._replace(params=params, optimizer=moments, epoch=jnp.int32(i + 1),
                               losses=losses.at[i, 0].set(value))  # fmt: skip
        if (i + 1) % VALID_EVERY == 0 or i + 1 == n_tasks:
            report({"tasks": i + 1} | validate(graphdef, params, bank, valid))
            if folder is not None:
                save_state(state, folder)
    return state.params


@partial(jax.jit, static_argnames="graphdef")
def _means(graphdef, params, query: Query):
    return merged(graphdef, params, training=False)(query).mean


def validate(graphdef, params, bank: Bank, tasks: Sequence[Task]) -> dict[str, float]:
    """Mean squared errors at the places not known, of scores of variance 1.

    Returns:
      ``network``, and ``bank``, the mixture by marginal likelihood, over all responses; ``network_gaussian``,
      ``bank_gaussian`` and ``exact``, over those that one process made, whose own prediction the last is: the limit.
    """
    errors = {name: [] for name in ("network", "bank", "network_gaussian", "bank_gaussian", "exact")}
    for task in tasks:
        query, target, _ = queries(task, bank)
        n = task.exact.size
        parts = [Query(*(field[batch] for field in query[:-1]), query.process) for _, batch in filled(n, BATCH)]
        network = np.concatenate([_means(graphdef, params, part) for part in parts])[:n]
        bank_says = np.sum(np.exp(query.log_weight[:n]) * query.mean[:n], axis=1)
        exact, gaussian = task.exact.ravel(), np.isfinite(task.exact.ravel())
        found = {"network": network, "bank": bank_says, "exact": exact}
        square = {name: (values - target[:n]) ** 2 for name, values in found.items()}
        for name in ("network", "bank"):
            errors[name].append(square[name].mean())
        for name, of in (("network_gaussian", "network"), ("bank_gaussian", "bank"), ("exact", "exact")):
            if gaussian.any():
                errors[name].append(square[of][gaussian].mean())
    return {name: float(np.mean(values)) for name, values in errors.items()}
