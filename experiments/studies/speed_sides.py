"""What ``experiments.speed`` times: the oracle and the port of each stage, each in a process of its own.

``prepare`` builds one side of a stage and runs it once, ``again`` runs it in the steady state. The processes are
spawned: the oracle's loader forks its workers, which must not happen beside JAX's threads.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from functools import partial

import numpy as np

from experiments.studies import speed_extract
from experiments.studies.speed_extract import torch_device

# The reference's largest DLPFC section: spots, train spots, genes, image features.
N_SPOTS, N_TRAIN, N_GENES, N_FEATURES = 3639, 910, 300, 1024
LOADER_WORKERS = 4  # as in the reference
PEAK_SIZE = (N_SPOTS, 1024, 2048)  # of the product by which the peak is measured: the GAT's widest layer
PEAK_PRODUCTS = 10  # one after the other: a single one is held up by new pages of memory

_prepared: dict[str, Callable[[], None]] = {}


def prepare(what: str, side: str, device: str, *args) -> dict[str, float]:
    """Builds one side of a stage in this process and runs its parts once: seconds of each, compilation included."""
    _prepared.clear()
    _prepared.update(BUILDERS[what, side](device, *args))
    return {part: again(part) for part in _prepared}


def again(part: str = "whole") -> float:
    """Seconds of one more run of what was prepared."""
    start = time.perf_counter()
    _prepared[part]()
    return time.perf_counter() - start


def peak_gib(side: str, device: str) -> float:
    """The most memory that this process has held: of the GPU, or resident."""
    if device == "gpu" and side == "port":
        import jax

        return jax.local_devices()[0].memory_stats()["peak_bytes_in_use"] / 2**30
    if device == "gpu":
        import torch

        return torch.cuda.max_memory_allocated() / 2**30
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def devices() -> tuple[str, bool]:
    """JAX's default device (``cpu``, ``gpu``), and whether PyTorch has a GPU."""
    import jax
    import torch

    return jax.default_backend(), torch.cuda.is_available()


# inputs


def simulated() -> dict[str, np.ndarray]:
    """Inputs of the reference's size: ``expression`` (N, G), ``features`` (N, D), ``xy`` (N, 2), ``train`` (n,)."""
    rng = np.random.default_rng(0)
    row, column = (a.ravel() for a in np.mgrid[0:78, 0:64])  # Visium's hexagonal array, spots in random order
    spots = rng.permutation(len(row))[:N_SPOTS]
    return {
        "expression": np.log2(rng.poisson(2, (N_SPOTS, N_GENES)) + 1).astype(np.float32),
        "features": rng.standard_normal((N_SPOTS, N_FEATURES), np.float32),
        "xy": np.stack([row, 2 * column + row % 2], axis=1)[spots].astype(np.float64),
        "train": np.sort(rng.permutation(N_SPOTS)[:N_TRAIN]),
    }


def of_section(describe: dict) -> dict[str, np.ndarray]:
    """The same of a section; ``describe`` as for ``default_fit``."""
    from experiments.configs import reference

    prepared = _prepare(describe, reference.get_config())
    section = prepared.section()
    train = np.flatnonzero(section.is_train)
    return {"expression": section.imputed, "features": section.image, "xy": prepared.near(), "train": train}


def _prepare(describe: dict, config):
    from spabit_jax.data.prepared import Prepared
    from spabit_jax.readers import read_section

    adata = read_section(describe["path"], **describe["how"])
    config.data.windows = describe["windows"]
    prepared = Prepared(adata, config, describe["encoder"], describe["cache_dir"])
    prepared.extract()
    return prepared


def _edges(arrays):
    from spabit_jax.neighbours import knn_graph

    return knn_graph(arrays["xy"], 6)


# the oracle


def _oracle_device(device: str) -> str:
    """PyTorch's name of the device; on a GPU its float32 products are in TF32, as JAX's are by default."""
    import torch

    if device == "gpu":
        torch.set_float32_matmul_precision("high")
    return torch_device(device)


def oracle_gat(device: str, arrays: dict, epochs: int):
    from experiments.studies import reference_torch

    x, edges = arrays["expression"], _edges(arrays)
    model = reference_torch.GAT(x.shape[1])
    run = partial(reference_torch.train_gat, x, edges, epochs, model=model, device=_oracle_device(device))
    return {"whole": run}


def oracle_spabit(device: str, arrays: dict, epochs: int):
    """The reference's own loop: a DataLoader over single spots, its workers started anew for each epoch."""
    import torch
    from torch.utils.data import DataLoader, TensorDataset

    from experiments.studies import reference_torch

    train = arrays["train"]
    target, image = (torch.tensor(arrays[name][train]) for name in ("expression", "features"))
    warnings.filterwarnings("ignore", "This DataLoader will create 4 worker processes")  # in this process alone
    loader = DataLoader(
        TensorDataset(target, image, target),
        128,
        shuffle=True,
        num_workers=LOADER_WORKERS,
        multiprocessing_context="fork",  # as in a script on Linux; a spawned process would spawn them, a second each
    )
    device = _oracle_device(device)
    model = reference_torch.SpaBiT(target.shape[1]).to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)

    def run():
        for _ in range(epochs):
            for batch in loader:
                y, features, tokens = (array.to(device) for array in batch)
                optimizer.zero_grad()
                loss = torch.nn.functional.mse_loss(model(features, tokens), y)
                loss.backward()
                optimizer.step()
                loss.item()  # which it prints at each step

    return {"whole": run}


def oracle_predict(device: str, arrays: dict, _):
    from experiments.studies import reference_torch

    model = reference_torch.SpaBiT(arrays["expression"].shape[1]).to(_oracle_device(device))
    spots = np.setdiff1d(np.arange(len(arrays["xy"])), arrays["train"])
    return {"whole": lambda: reference_torch.predict(model, arrays["features"], arrays["expression"], spots)}


# the port


def port_gat(device: str, arrays: dict, epochs: int):
    import jax

    from experiments.configs import reference
    from spabit_jax.data.graphs import make_graph
    from spabit_jax.reference import separate_gat as gat
    from spabit_jax.training.fit import make_chunk

    config, n_genes = reference.get_config(), arrays["expression"].shape[1]
    graphdef, new_state = gat.new_gat(n_genes, config)
    data = jax.device_put((arrays["expression"], make_graph(*_edges(arrays), len(arrays["xy"]))))
    parts = _trained(new_state(0), make_chunk(gat.make_gat_epoch(graphdef, config)), data, epochs)

    def loss(params, data, _, key):
        return gat.gat_loss(graphdef, params, data, key)

    return parts | _gradients(loss, new_state(0), data, np.arange(epochs)[:, None])


def port_spabit(device: str, arrays: dict, epochs: int):
    from spabit_jax.training.fit import make_chunk
    from spabit_jax.training.network import make_spabit_epoch, spabit_loss

    trainer = port_trainer(arrays)
    graphdef, config = trainer.graphdef, trainer.config
    data = trainer.data._replace(fit_spots=trainer.train_spots, valid_spots=trainer.train_spots[:0])
    parts = _trained(trainer.initial_state(0), make_chunk(make_spabit_epoch(graphdef, config)), data, epochs)
    size = config.train.batch_size
    batches = trainer.train_spots[: len(trainer.train_spots) // size * size].reshape(-1, size)
    return parts | _gradients(partial(spabit_loss, graphdef, config), trainer.initial_state(0), data, batches)


def port_predict(device: str, arrays: dict, _):
    trainer = port_trainer(arrays)
    params = trainer.initial_state(0).params
    spots = np.flatnonzero(~trainer.section.is_train)
    return {"whole": lambda: trainer.predict(params, spots, 0)}


def port_trainer(arrays: dict):
    """The reference preset's ``Trainer`` on such arrays."""
    from experiments.configs import reference
    from spabit_jax.data.section import Section
    from spabit_jax.training.network import Trainer

    x, n = arrays["expression"], len(arrays["xy"])
    is_train = np.isin(np.arange(n), arrays["train"])
    section = Section(
        expression=np.where(is_train[:, None], x, np.nan),
        image=arrays["features"],
        xy=arrays["xy"].astype(np.float32),
        noise=np.where(is_train, 1, np.nan),
        is_train=is_train,
        context=np.zeros((n, 0), np.int32),
        imputed=x,
        graph=None,
    )
    return Trainer(section, reference.get_config(), x[None], np.zeros(n, np.int32))


def _trained(state, chunk, data, epochs: int):
    """``whole``: epochs as ``fit`` runs them, one chunk after the other."""
    import jax

    states = [state]

    def run():
        states[0] = jax.block_until_ready(chunk(states[0], data, jax.random.key(0), epochs))

    return {"whole": run}


def _gradients(loss, state, data, batches):
    """``passes``: forward and backward pass alone, of one batch after the other, in a loop as in training.

    ``peak``: the products by which the machine's peak is measured.

    Args:
      loss: of parameters, data, a batch and a key.
      batches: the first axis is that of batches.
    """
    import jax
    import jax.numpy as jnp

    @partial(jax.jit, donate_argnums=0)
    def passes(gradients, params, data, batches, key):
        def step(_, batch):
            return jax.grad(loss)(params, data, batch, jax.random.fold_in(key, batch[0])), None

        return jax.lax.scan(step, gradients, batches)[0]

    gradients = [jax.tree.map(jnp.zeros_like, state.params)]

    def run():
        gradients[0] = jax.block_until_ready(passes(gradients[0], state.params, data, batches, jax.random.key(0)))

    m, k, n = PEAK_SIZE
    product, a, b = jax.jit(jnp.matmul), jnp.ones((m, k)), jnp.ones((k, n))

    def peak():
        for _ in range(PEAK_PRODUCTS):
            jax.block_until_ready(product(a, b))

    return {"passes": run, "peak": peak}


def port_protocol(arrays: dict, epochs: dict[str, int], num_seeds: int) -> float:
    """Seconds of the reference's whole protocol in the port, compilation included: one GAT, then the seeds of SpaBiT.

    Args:
      epochs: of ``gat_epoch`` and of ``spabit_epoch``.
    """
    from experiments.configs import reference
    from spabit_jax.data.graphs import make_graph
    from spabit_jax.reference.separate_gat import gene_tokens
    from spabit_jax.training.network import Trainer

    config, seeds = reference.get_config(), list(range(num_seeds))
    config.gat.epochs, config.train.epochs = epochs["gat_epoch"], epochs["spabit_epoch"]
    section = port_trainer(arrays).section
    section = section._replace(graph=make_graph(*_edges(arrays), len(section.xy)))
    start = time.perf_counter()
    trainer = Trainer(section, config, *gene_tokens(section, arrays["xy"], config)[:2])
    for seed, state in zip(seeds, trainer.fit_seeds(seeds), strict=True):
        trainer.predict(state.chosen, np.flatnonzero(~section.is_train), seed)
    return time.perf_counter() - start


def port_default_fit(describe: dict) -> float:
    """Seconds of fit and prediction with the default preset, from read section and cached features."""
    from experiments.configs import default
    from spabit_jax.ensemble.predictor import fit

    prepared = _prepare(describe, default.get_config())
    start = time.perf_counter()
    fit(prepared, [0]).predict_spots()
    return time.perf_counter() - start


BUILDERS = {
    ("gat_epoch", "oracle"): oracle_gat,
    ("gat_epoch", "port"): port_gat,
    ("spabit_epoch", "oracle"): oracle_spabit,
    ("spabit_epoch", "port"): port_spabit,
    ("predict", "oracle"): oracle_predict,
    ("predict", "port"): port_predict,
    ("extract", "oracle"): speed_extract.oracle,
    ("extract", "port"): speed_extract.port,
}
