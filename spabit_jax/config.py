"""Typed configuration of a run.

A preset (``experiments/configs/*.py``) returns a ``Config`` from ``get_config()``; any field is overridden on the
command line as ``--config.model.depth=6``. Annotations are not postponed here: ml_collections reads the types.
"""

import dataclasses
import math
import numbers
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from spabit_jax.errors import InputError
from spabit_jax.scale import SCALES

CROSS_ATTENTIONS = ("both", "image_to_gene", "gene_to_image")
SPLITS = ("lattice", "random", "block", "none", "image_only")
OWN_SPLITS = "obs:COLUMN or FILE.csv"  # the user's, of which each spot says train or test
NAMED_PANELS = ("informative", "hvg", "train_spots", "reference")
IMAGE_TRANSFORMS = ("components", "reference")


class Rule(NamedTuple):
    """What a value must be."""

    wanted: str  # in words
    holds: Callable[[Any], bool]


LARGEST = 2**31 - 1  # of whole numbers
MOST_EPOCHS = 10_000_000  # each has its losses in the state
MOST_WEIGHTS = 300_000_000  # of a network: with its optimiser and the best so far 5 GB a seed
LONGEST_NAME = 150  # bytes: a file's name has 255, and more is put behind it
TYPES = {int: ("a whole number", numbers.Integral), float: ("a number", numbers.Real), str: ("text", str),
         bool: ("true or false", bool)}  # fmt: skip

POSITIVE = Rule("positive", lambda value: value > 0)
NOT_NEGATIVE = Rule("0 or more", lambda value: value >= 0)
AT_LEAST_2 = Rule("at least 2", lambda value: value >= 2)
SHARE = Rule("between 0 and 1", lambda value: 0 < value < 1)
PROBABILITY = Rule("at least 0 and below 1", lambda value: 0 <= value < 1)


EPOCHS = Rule(f"from 1 to {MOST_EPOCHS:,}", lambda value: 1 <= value <= MOST_EPOCHS)


def is_path_component(name: str) -> bool:
    """Whether it can be the name of a file or folder, short enough for what is put behind it."""
    fits = isinstance(name, str) and name.isprintable() and len(name.encode()) <= LONGEST_NAME
    return fits and "/" not in name and bool(name.strip(". "))


def one_of(names: tuple[str, ...]) -> Rule:
    return Rule(f"one of {', '.join(names)}", lambda value: value in names)


def split_of(names: tuple[str, ...]) -> Rule:
    return Rule(f"one of {', '.join(names)}, {OWN_SPLITS}", lambda value: value in names or is_own_split(value))


def is_own_split(split: str) -> bool:
    """Whether a split is the user's own: ``obs:COLUMN`` or ``FILE.csv``."""
    return split.startswith("obs:") or split.lower().endswith(".csv")


def _that(default, rule: Rule):
    """A field with a rule, which stands with it."""
    return field(default=default, metadata={"rule": rule})


def panel_rule(panel: str) -> str:
    """The rule of a panel, without the genes that it names; that of the default where it is a file."""
    rule = panel.partition("+")[0]
    return rule if rule in NAMED_PANELS else NAMED_PANELS[0]


@dataclass
class Faults:
    """Faults of the reference, each a switch; more on them in docs/ARCHITECTURE.md."""

    single_key: bool = False  # 1: each cross-attention sees one key, so that its softmax is identically 1
    batch_attention: bool = False  # 2: the Transformer attends across the spots of a batch
    self_in_gene_token: bool = False  # 3: a train spot's gene token contains its own target
    no_validation: bool = False  # 4: a fixed number of epochs, no inner validation, no early stop
    transposed_crop: bool = False  # 5: patches are cut at (y, x)
    array_neighbours: bool = False  # 6: neighbours by array coordinates, ties included
    relu_output: bool = False  # 7: ReLU on the output, which leaves genes constant at 0


@dataclass
class DataConfig:
    # of expression: log1p_normalised, or log2_count as in the reference
    scale: str = _that("log1p_normalised", one_of(SCALES))
    panel: str = "informative"  # genes: informative, hvg, train_spots, reference or a file, one a line; +A,B adds
    n_genes: int = _that(500, POSITIVE)  # size of the panel (a file's panel is taken whole)
    windows: str = "0.75d+1.5d+3d"  # widths of the image windows, side by side: d (spot diameters), px or um
    # lattice, random, block, none (every spot is a train spot), image_only (none is; needs related sections), or one's
    # own: obs:COLUMN or FILE.csv
    split: str = _that("lattice", split_of(SPLITS))
    # of related sections: same, or another split; none, also the same of image_only, gives all their spots
    related_split: str = _that("same", split_of(("same", *SPLITS)))
    train_fraction: float = _that(0.25, SHARE)  # share of train spots in a random or block split
    split_seed: int = _that(0, NOT_NEGATIVE)  # seed of a random or block split
    # components, or reference: raw where the width fits, else projected to it
    image_transform: str = _that("components", one_of(IMAGE_TRANSFORMS))
    # principal components of the image features around each spot, with components; the pretrained SpaBiT is linear in
    # those beyond the first 20
    image_components: int = _that(100, POSITIVE)


@dataclass
class GATConfig:
    joint: bool = True  # trained within the model on each spot's neighbours; else the reference's separate regressor
    # neighbours of a spot or token in the GAT's graph, and in imputed expression
    n_neighbours: int = _that(6, POSITIVE)
    heads: int = _that(4, POSITIVE)  # attention heads of the first layer
    head_width: int = _that(16, POSITIVE)  # width of each head
    out_width: int = _that(64, POSITIVE)  # width of the second layer
    mlp_width: int = _that(2048, POSITIVE)  # hidden width of the separate regressor's output network
    dropout: float = _that(0.1, PROBABILITY)  # on its inputs, hidden values and attention weights
    epochs: int = _that(3000, EPOCHS)  # of the separate regressor
    learning_rate: float = _that(1e-4, POSITIVE)  # of the separate regressor
    weight_decay: float = _that(5e-4, NOT_NEGATIVE)  # of the separate regressor, L2 added to the gradient
    # cross-fitting of the separate regressor when train spots' tokens must not contain their target
    folds: int = _that(5, AT_LEAST_2)


@dataclass
class ModelConfig:
    name: str = "spabit"  # a name in spabit_jax.models.MODELS
    n_context: int = _that(16, POSITIVE)  # nearest train spots that a spot sees (none where single_key is on)
    width: int = _that(64, POSITIVE)  # width of all tokens
    mlp_width: int = _that(256, POSITIVE)  # hidden width of the gene embedding and of the head
    # both, or one: image_to_gene (image queries) or gene_to_image (gene queries)
    cross_attention: str = _that("both", one_of(CROSS_ATTENTIONS))
    cross_heads: int = _that(4, POSITIVE)  # heads of the cross-attentions
    cross_dropout: float = _that(0.1, PROBABILITY)  # on the cross-attentions' weights
    depth: int = _that(1, NOT_NEGATIVE)  # Transformer layers
    heads: int = _that(4, POSITIVE)  # heads of the Transformer
    head_width: int = _that(16, POSITIVE)  # width of each
    feedforward_width: int = _that(64, POSITIVE)  # hidden width of the Transformer's feed-forward part
    residual: bool = True  # predict a mix of the neighbours' expression plus a correction; else expression itself
    # principal components of expression that the model works in; 0: the genes themselves
    n_components: int = _that(10, NOT_NEGATIVE)
    # weights of the pretrained member: those of the package, or a file of experiments.pretrain
    pretrained: str = ""
    # what predicts, names in ensemble.members.MEMBERS: pretrained, or spabit (trained on the section), kriging, ridge;
    # of several the weighted mean, with weights from train spots
    members: str = "pretrained"


@dataclass
class TrainConfig:
    epochs: int = _that(200, EPOCHS)  # at most
    # train spots in an epoch, drawn at random where there are more; 0: all
    epoch_spots: int = _that(2048, NOT_NEGATIVE)
    batch_size: int = _that(128, POSITIVE)  # spots a step; the last batch of an epoch is short
    loss: str = "mse"  # a name in training.losses.LOSSES: mse (of the scores), or one of your own
    learning_rate: float = _that(1e-3, POSITIVE)
    weight_decay: float = _that(1e-2, NOT_NEGATIVE)  # decoupled (AdamW); the reference has none
    neighbour_dropout: float = _that(0.5, PROBABILITY)  # probability with which a training step hides each context spot
    validation_fraction: float = _that(0.1, SHARE)  # of train spots: they decide when to stop; not with no_validation
    # epochs without improvement before training stops, looked at every chunk_epochs
    patience: int = _that(40, POSITIVE)
    chunk_epochs: int = _that(10, POSITIVE)  # epochs run between checkpoints, in one call


CONFIGS: dict[str, type["Config"]] = {}  # by name: Config, and subclasses of users as they are defined


@dataclass
class Config:
    """A configuration. A subclass may have further fields, and parts that are subclasses; it needs its ``@dataclass``.

    Each of them needs a default, and is a part (a dataclass) or a plain value.
    """

    # the method's name in result files, and of the folder that a sweep makes for it
    name: str = _that("default", Rule(f"one component of a path, at most {LONGEST_NAME} bytes", is_path_component))
    data: DataConfig = field(default_factory=DataConfig)
    gat: GATConfig = field(default_factory=GATConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    faults: Faults = field(default_factory=Faults)

    def __init_subclass__(cls):
        CONFIGS[cls.__name__] = cls

    def __repr__(self) -> str:
        """What differs from the default."""
        default = leaves(type(self)())
        changed = (f"{name}={value!r}" for name, value in leaves(self).items() if value != default.get(name, ...))
        return f"{type(self).__name__}({', '.join(changed)})"

    def validate(self) -> "Config":
        """Returns itself; raises InputError naming the first field whose value makes no sense."""
        default = type(self)()
        if unknown := vars(self).keys() - {of_self.name for of_self in dataclasses.fields(self)}:
            raise InputError(f"config has no field {min(unknown)!r}: is it misspelt, or its class no @dataclass?")
        for of_self in dataclasses.fields(self):
            part, wanted = getattr(self, of_self.name), getattr(default, of_self.name)
            if not dataclasses.is_dataclass(wanted):
                _check_value(part, of_self, of_self.name)
            elif type(part) is not type(wanted):
                raise InputError(f"config.{of_self.name} is {part!r:.80}: it must be a {type(wanted).__name__}")
            else:
                if unknown := vars(part).keys() - {of_part.name for of_part in dataclasses.fields(part)}:
                    raise InputError(f"config.{of_self.name} has no field {min(unknown)!r}: is it misspelt?")
                for of_part in dataclasses.fields(part):
                    _check_value(getattr(part, of_part.name), of_part, f"{of_self.name}.{of_part.name}")
        for name, holds, wanted in TOGETHER:
            if not holds(self):
                _refuse(name, leaves(self)[name], wanted)
        return self

    def of_related(self) -> "Config":
        """The configuration for related sections: their split may be another one, and they need not have all genes.

        Where nothing is measured in the section itself, the panel is what the first of them has of what is asked for.
        """
        nothing_here, split = self.data.split == "image_only", self.data.related_split
        if split == "same":
            split = "none" if nothing_here else self.data.split
        return self.with_data(split=split, panel=self.data.panel if nothing_here else panel_rule(self.data.panel))

    def with_data(self, **changes) -> "Config":
        """This configuration with other values of fields of ``data``."""
        return dataclasses.replace(self, data=dataclasses.replace(self.data, **changes))

    def with_absolute_paths(self) -> "Config":
        """This configuration with the files of a split and of weights found from any folder."""
        config, split, weights = self, self.data.split, self.model.pretrained
        if split.lower().endswith(".csv"):
            config = config.with_data(split=os.path.abspath(split))
        if weights:
            model = dataclasses.replace(config.model, pretrained=os.path.abspath(weights))
            config = dataclasses.replace(config, model=model)
        return config

    def to_dict(self) -> dict:
        """The configuration as nested dicts of plain values."""
        return _plain(dataclasses.asdict(self))

    @classmethod
    def from_dict(cls, values: dict) -> "Config":
        """The configuration that ``to_dict`` gave, also before there were scales; TypeError for unknown fields."""
        model = dict(values["model"])
        if "companions" in model:  # as it was before there were other members
            model["members"] = "spabit,kriging,ridge" if model.pop("companions") else "spabit"
        values = values | {"data": {"scale": "log2_count"} | values["data"], "model": model}
        parts = {name: type(part) for name, part in vars(cls()).items() if dataclasses.is_dataclass(part)}
        return cls(**{name: parts[name](**part) if name in parts else part for name, part in values.items()})


CONFIGS["Config"] = Config


def leaves(config, prefix: str = "") -> dict[str, Any]:
    """The values of a configuration's fields by their names, as ``model.depth``."""
    found = {}
    for of_config in dataclasses.fields(config):
        value, name = getattr(config, of_config.name), prefix + of_config.name
        found |= leaves(value, f"{name}.") if dataclasses.is_dataclass(value) else {name: value}
    return found


def n_weights(config: Config) -> int:
    """About how many weights a network has: the products of the widths that meet in it."""
    m, g, genes = config.model, config.gat, config.model.n_components or config.data.n_genes
    layer = 4 * m.width * m.heads * m.head_width + 2 * m.width * m.feedforward_width
    graph = g.heads * g.head_width * (genes + g.out_width) + g.out_width * (g.mlp_width + m.width)
    own = m.mlp_width * (2 * genes + 2 * m.width) + 8 * m.width**2 + m.width * config.data.image_components
    return own + m.depth * layer + graph + g.mlp_width * genes


# Rules of several fields: the field that is named, whether a configuration holds it, and what it must be.
TOGETHER = (
    (
        "model.width",
        lambda c: n_weights(c) <= MOST_WEIGHTS,
        f"smaller, or the other widths, heads and depth of model and gat: about {MOST_WEIGHTS:,} weights are the most",
    ),
    ("model.width", lambda c: c.model.width % c.model.cross_heads == 0, "a multiple of model.cross_heads"),
    (
        "model.residual",
        lambda c: not (c.model.residual and c.faults.single_key),
        "False where faults.single_key is on: there are no neighbours to mix",
    ),
    (
        "gat.joint",
        lambda c: not (c.gat.joint and c.faults.single_key),
        "False where faults.single_key is on: there are no neighbours to attend to",
    ),
    (
        "model.n_components",
        lambda c: not (c.model.n_components and c.faults.relu_output),
        "0 where faults.relu_output is on: components are negative too",
    ),
    (
        "model.members",
        lambda c: c.model.name == "spabit" and c.train.loss == "mse" or "spabit" in c.model.members.split(","),
        "such that spabit is among them where model.name or train.loss are set: they are of the network alone",
    ),
    (
        "faults.array_neighbours",
        lambda c: not (c.faults.array_neighbours and "pretrained" in c.model.members.split(",")),
        "False with the member pretrained, which sees the nearest spots in pixels",
    ),
    (
        "model.members",
        lambda c: (
            c.model.members == "spabit"
            or not (c.faults.no_validation or c.faults.self_in_gene_token)
            and c.data.image_transform == "components"
            and c.model.n_components > 0
        ),
        "spabit alone with faults.no_validation, faults.self_in_gene_token, data.image_transform=reference or "
        "model.n_components=0: it needs train spots that the network has not seen, and components",
    ),
)


def _plain(value):
    """NumPy's numbers as Python's and tuples as lists: what JSON knows."""
    if isinstance(value, dict):
        return {name: _plain(part) for name, part in value.items()}
    if isinstance(value, tuple):
        return [_plain(part) for part in value]
    return value.item() if hasattr(value, "item") else value


def _check_value(value, field: dataclasses.Field, name: str) -> None:
    """Raises InputError for a value of another type than the field's, one too large for any, or against its rule."""
    kind = TYPES.get(field.type)
    if kind is not None:
        wanted, among = kind
        if not isinstance(value, among) or isinstance(value, bool) != (field.type is bool):
            _refuse(name, value, wanted)
        if field.type is float and not math.isfinite(value) or field.type is int and abs(value) > LARGEST:
            _refuse(name, value, f"{wanted} that is finite and at most {LARGEST}")
    rule = field.metadata.get("rule")
    if rule is not None and not rule.holds(value):
        _refuse(name, value, rule.wanted)


def _refuse(name: str, value, wanted: str) -> None:
    raise InputError(f"config.{name} is {value!r:.80}: it must be {wanted}")
