"""The oracle and the port with the same weights, at sizes that no transposed axis survives."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import numpy as np
import torch
from flax import nnx

from experiments.configs import reference
from experiments.studies import reference_torch
from spabit_jax.config import Config
from spabit_jax.models.graph_attention import GATRegressor
from spabit_jax.models.spabit import SpaBiT
from spabit_jax.reference.weights import config_from_state_dict, from_torch, to_torch

# Primes; a width that heads must divide is a product of two.
GAT_SIZES = [
    {"n_genes": 7, "heads": 3, "head_width": 5, "out_width": 11, "mlp_width": 13},
    {"n_genes": 19, "heads": 2, "head_width": 7, "out_width": 17, "mlp_width": 5},
]
SPABIT_SIZES = [
    {"n_genes": 7, "width": 2 * 11, "mlp_width": 13, "cross_heads": 2, "depth": 1, "heads": 3, "head_width": 5,
     "feedforward_width": 17},
    {"n_genes": 19, "width": 3 * 5, "mlp_width": 23, "cross_heads": 3, "depth": 2, "heads": 2, "head_width": 7,
     "feedforward_width": 11},
]  # fmt: skip


class Pair(NamedTuple):
    oracle: torch.nn.Module
    config: Config
    graphdef: Any
    params: nnx.State

    def merge(self):
        return nnx.merge(self.graphdef, self.params)


def make_pair(oracle_class, sizes: dict, seed: int, dtype: torch.dtype = torch.float64) -> Pair:
    """A new oracle and the port with its weights, those of the norms moved off their initial zeros and ones."""
    torch.manual_seed(seed)
    oracle = oracle_class(**sizes).to(dtype).eval()
    with torch.no_grad():
        for parameter in oracle.parameters():
            if parameter.ndim == 1:
                parameter += 0.1 * torch.randn_like(parameter)
    config = reference.get_config()
    config.model.cross_heads = sizes.get("cross_heads", config.model.cross_heads)
    config.model.heads = sizes.get("heads", config.model.heads)
    config.gat.dropout = config.model.cross_dropout = 0.0
    weights = state_dict(oracle)
    config = config_from_state_dict(weights, config)
    params, _ = from_torch(weights, config)

    def model():
        rngs = nnx.Rngs(0)
        if oracle_class is reference_torch.GAT:
            return GATRegressor(config.data.n_genes, config.gat, rngs=rngs)
        return SpaBiT(config.data.n_genes, config.model.width, config, rngs=rngs)

    return Pair(oracle, config, nnx.split(nnx.eval_shape(model))[0], params)


def state_dict(module: torch.nn.Module) -> dict[str, np.ndarray]:
    # copies: training in place must not reach the port, which may share memory with an array that it is given
    return {name: tensor.numpy().copy() for name, tensor in module.state_dict().items()}


def oracle_gradients(module: torch.nn.Module) -> dict[str, np.ndarray]:
    """By name; without the parameters that are never used."""
    return {name: p.grad.numpy() for name, p in module.named_parameters() if p.grad is not None}


def assert_close(port, oracle, tolerance: float, scale: float = 0.0) -> None:
    """Relative norm of the difference; ``scale`` is what counts as large where the oracle's own norm is about zero."""
    port, oracle = np.asarray(port), np.asarray(oracle)
    assert port.shape == oracle.shape
    size = np.linalg.norm(oracle.ravel())
    assert np.linalg.norm((port - oracle).ravel()) <= tolerance * max(size, scale)


def assert_gradients_close(port: nnx.State, oracle: dict[str, np.ndarray], tolerance: float) -> None:
    """Every parameter's gradient, and none that only one side has."""
    port = to_torch(port)
    assert port.keys() == oracle.keys()
    largest = max(np.linalg.norm(gradient) for gradient in oracle.values())
    for name in oracle:
        assert_close(port[name], oracle[name], tolerance, scale=1e-3 * largest)


def random_graph(n: int, n_edges: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Senders and receivers, every edge once, not symmetric; node 0 has no edge."""
    pairs = np.random.default_rng(seed).permutation((n - 1) * (n - 1))[:n_edges]
    return (1 + pairs % (n - 1)).astype(np.int32), (1 + pairs // (n - 1)).astype(np.int32)


def to_jax(*arrays):
    return [jax.numpy.asarray(array) for array in arrays]
