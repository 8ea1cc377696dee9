"""State dicts of the reference ↔ parameters of the port, for SpaBiT and for the separate GAT.

A linear layer's weight (out, in) is the port's kernel (in, out); the heads of the GAT, which the reference keeps apart,
are one kernel (in, heads · width). ``from_torch`` and ``to_torch`` only move numbers: there and back is the identity.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from flax import nnx

from spabit_jax.config import Config
from spabit_jax.errors import InputError
from spabit_jax.models.graph_attention import GATRegressor
from spabit_jax.models.spabit import SpaBiT

# Module of the port: module of the reference. * is the layer in both, or in the reference alone the head.
MODULES = {
    "gene_in.hidden": "neighbor_emb.0",
    "gene_in.norm": "neighbor_emb.2",
    "gene_in.out": "neighbor_emb.3",
    "image_to_gene.query": "cross_attention1.query_proj",
    "image_to_gene.key": "cross_attention1.key_proj",
    "image_to_gene.value": "cross_attention1.value_proj",
    "image_to_gene.out": "cross_attention1.output_proj",
    "image_to_gene.norm": "cross_attention1.norm",
    "gene_to_image.query": "cross_attention2.query_proj",
    "gene_to_image.key": "cross_attention2.key_proj",
    "gene_to_image.value": "cross_attention2.value_proj",
    "gene_to_image.out": "cross_attention2.output_proj",
    "gene_to_image.norm": "cross_attention2.norm",
    "fusion": "fusion_proj",
    "layers.*.attention_norm": "trans.layers.*.0.norm",
    "layers.*.qkv": "trans.layers.*.0.fn.to_qkv",
    "layers.*.attention_out": "trans.layers.*.0.fn.to_out.0",
    "layers.*.feedforward_norm": "trans.layers.*.1.norm",
    "layers.*.feedforward_hidden": "trans.layers.*.1.fn.net.0",
    "layers.*.feedforward_out": "trans.layers.*.1.fn.net.3",
    "head.hidden": "gene_head.0",
    "head.norm": "gene_head.2",
    "head.out": "gene_head.3",
    "gat.hidden": "attentions.*",
    "gat.out": "out_att",
}
# Array of the port: tensor of the reference, and the axis of the array along which heads lie. Every one is transposed,
# which leaves a vector as it is.
LEAVES = {"kernel": ("weight", 1), "scale": ("weight", 0), "bias": ("bias", 0)}
GAT_LEAVES = {"kernel": ("W.weight", 1), "sender": ("a_src", 0), "receiver": ("a_dst", 0)}
# The reference owns these and never uses them.
UNUSED = ("x_embed.", "y_embed.", "crossAttention.")


class _Entry(NamedTuple):
    path: tuple  # in the port
    variable: nnx.Variable
    names: list[str]  # in the reference: one, or one for each head
    axis: int

    @property
    def shape(self) -> tuple[int, ...]:
        """Of each tensor in the reference."""
        shape = list(self.variable.shape)
        shape[self.axis] //= len(self.names)
        return tuple(reversed(shape))


def kind_of(weights: dict[str, np.ndarray]) -> str:
    """``spabit`` or ``gat``, by the names in a state dict; InputError if it is neither's."""
    for kind, name in (("spabit", "neighbor_emb.0.weight"), ("gat", "out_att.W.weight")):
        if name in weights:
            return kind
    raise InputError(
        f"the state dict is neither SpaBiT's (no neighbor_emb.0.weight) nor the GAT's (no out_att.W.weight); "
        f"its first name is {next(iter(weights), None)}: give one of the reference's"
    )


def config_from_state_dict(weights: dict[str, np.ndarray], config: Config) -> Config:
    """The configuration with the sizes of a state dict; numbers of attention heads, which it does not tell, stay.

    Args:
      weights: of SpaBiT or the GAT.
      config: the preset ``reference``.

    Raises:
      InputError: a tensor that tells a size is missing, or the Transformer's width is no multiple of its heads.
    """

    def shape(name: str) -> tuple[int, int]:
        if name not in weights or weights[name].ndim != 2:
            raise InputError(f"the state dict has no matrix {name}: give a whole one of the reference's")
        return weights[name].shape

    if kind_of(weights) == "gat":
        heads = _count(weights, r"attentions\.(\d+)\.")
        head_width, n_genes = shape("attentions.0.W.weight")
        gat = replace(
            config.gat,
            heads=heads,
            head_width=head_width,
            out_width=shape("out_att.W.weight")[0],
            mlp_width=shape("gene_head.0.weight")[0],
        )
        return replace(config, gat=gat, data=replace(config.data, n_genes=n_genes)).validate()
    mlp_width, n_genes = shape("neighbor_emb.0.weight")
    model = replace(config.model, mlp_width=mlp_width, width=shape("neighbor_emb.3.weight")[0])
    model.depth = _count(weights, r"trans\.layers\.(\d+)\.")
    if model.depth:
        model.feedforward_width = shape("trans.layers.0.1.fn.net.0.weight")[0]
        model.head_width, rest = divmod(shape("trans.layers.0.0.fn.to_qkv.weight")[0], 3 * model.heads)
        if rest:
            raise InputError(
                f"trans.layers.0.0.fn.to_qkv.weight has {model.head_width * 3 * model.heads + rest} rows, no multiple "
                f"of 3 x {model.heads} heads: set config.model.heads"
            )
    return replace(config, model=model, data=replace(config.data, n_genes=n_genes)).validate()


def from_torch(weights: dict[str, np.ndarray], config: Config) -> tuple[nnx.State, dict[str, np.ndarray]]:
    """Parameters of the port from a state dict of the reference.

    Args:
      weights: name → array, of SpaBiT or the GAT (see ``kind_of``).
      config: of the same sizes, as ``config_from_state_dict`` gives it.

    Returns:
      ``nnx.State`` of ``SpaBiT`` or ``GATRegressor``, arrays as they came; and what the port has no counterpart for.

    Raises:
      InputError: the first name that is missing or unexpected, or whose shape is wrong.
    """
    unused = {name: array for name, array in weights.items() if name.startswith(UNUSED)}
    entries = list(_entries(_template(weights, config)))
    expected = [name for entry in entries for name in entry.names]
    for name in expected:
        if name not in weights:
            raise InputError(f"the state dict lacks {name}: give a whole one of the reference's")
    for name in weights:
        if name not in unused and name not in set(expected):
            raise InputError(f"the state dict has {name}, which the reference does not: give one of the reference's")
    for entry in entries:
        for name in entry.names:
            if weights[name].shape != entry.shape:
                raise InputError(
                    f"{name} has shape {weights[name].shape}, {entry.shape} is needed: set the configuration's sizes"
                )
    filled = [
        (e.path, e.variable.replace(np.concatenate([weights[name].T for name in e.names], axis=e.axis)))
        for e in entries
    ]
    return nnx.from_flat_state(filled), unused


def to_torch(params: nnx.State, unused: dict[str, np.ndarray] | None = None) -> dict[str, np.ndarray]:
    """A state dict of the reference from parameters of the port; ``unused`` as ``from_torch`` gave it.

    Without ``unused`` load it with ``strict=False``: the reference owns modules that it never uses.
    """
    weights = {}
    for entry in _entries(params):
        parts = np.split(np.asarray(entry.variable[...]), len(entry.names), axis=entry.axis)
        weights |= {name: np.ascontiguousarray(part.T) for name, part in zip(entry.names, parts, strict=True)}
    return weights | (unused or {})


def _template(weights: dict[str, np.ndarray], config: Config) -> nnx.State:
    """Shapes of the port's parameters."""
    n_genes = len(weights["gene_head.3.bias"]) if "gene_head.3.bias" in weights else config.data.n_genes
    if kind_of(weights) == "gat":
        model = nnx.eval_shape(lambda: GATRegressor(n_genes, config.gat, rngs=nnx.Rngs(0)))
    else:
        model = nnx.eval_shape(lambda: SpaBiT(n_genes, config.model.width, config, rngs=nnx.Rngs(0)))
    return nnx.state(model, nnx.Param)


def _entries(params: nnx.State) -> Iterator[_Entry]:
    flat = dict(nnx.to_flat_state(params))
    for path, variable in flat.items():
        *module, leaf = path
        leaves = GAT_LEAVES if module[0] == "gat" else LEAVES
        pattern = MODULES.get(".".join("*" if isinstance(part, int) else part for part in module))
        if pattern is None or leaf not in leaves:
            raise InputError(
                f"the reference has no counterpart of {'.'.join(map(str, path))}: use experiments/configs/reference.py"
            )
        name, axis = leaves[leaf]
        indices = [part for part in module if isinstance(part, int)]
        if "*" in pattern and not indices:
            indices = range(flat[*module, "sender"].shape[0])
        names = [pattern.replace("*", str(i)) for i in indices] if indices else [pattern]
        yield _Entry(path, variable, [f"{prefix}.{name}" for prefix in names], axis)


def _count(weights: dict[str, np.ndarray], pattern: str) -> int:
    return 1 + max((int(m[1]) for m in map(re.compile(pattern).match, weights) if m), default=-1)
