"""Typed configuration of a run.

A preset (``experiments/configs/*.py``) returns a ``Config`` from ``get_config()``; any field is overridden on the
command line as ``--config.model.depth=6``. Annotations are not postponed here: ml_collections reads the types.
"""

import dataclasses
from dataclasses import dataclass, field

from spabit_jax.errors import InputError
from spabit_jax.scale import SCALES


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
    scale: str = "log1p_normalised"  # of expression: log1p_normalised, or log2_count as in the reference
    panel: str = "informative"  # genes: informative, hvg, train_spots, reference or a file, one a line; +A,B adds
    n_genes: int = 500  # size of the panel (a file's panel is taken whole)
    windows: str = "0.75d+1.5d+3d"  # widths of the image windows, side by side: d (spot diameters), px or um
    split: str = "lattice"  # lattice, random, block, or none (every spot is a train spot)
    related_split: str = "same"  # of related sections: same, or another split; none gives all their spots
    train_fraction: float = 0.25  # share of train spots in a random or block split
    split_seed: int = 0  # seed of a random or block split
    image_transform: str = "components"  # components, or reference: raw where the width fits, else projected to it
    image_components: int = 20  # principal components of the image features around each spot, with components


@dataclass
class GATConfig:
    joint: bool = True  # trained within the model on each spot's neighbours; else the reference's separate regressor
    n_neighbours: int = 6  # neighbours of a spot or token in the GAT's graph, and in imputed expression
    heads: int = 4  # attention heads of the first layer
    head_width: int = 16  # width of each head
    out_width: int = 64  # width of the second layer
    mlp_width: int = 2048  # hidden width of the separate regressor's output network
    dropout: float = 0.1  # on its inputs, hidden values and attention weights
    epochs: int = 3000  # of the separate regressor
    learning_rate: float = 1e-4  # of the separate regressor
    weight_decay: float = 5e-4  # of the separate regressor, L2 added to the gradient
    folds: int = 5  # cross-fitting of the separate regressor when train spots' tokens must not contain their target


@dataclass
class ModelConfig:
    name: str = "spabit"  # a name in spabit_jax.models.MODELS
    n_context: int = 16  # nearest train spots that a spot sees (none where single_key is on)
    width: int = 64  # width of all tokens
    mlp_width: int = 256  # hidden width of the gene embedding and of the head
    cross_attention: str = "both"  # both, or one: image_to_gene (image queries) or gene_to_image (gene queries)
    cross_heads: int = 4  # heads of the cross-attentions
    cross_dropout: float = 0.1  # on the cross-attentions' weights
    depth: int = 1  # Transformer layers
    heads: int = 4  # heads of the Transformer
    head_width: int = 16  # width of each
    feedforward_width: int = 64  # hidden width of the Transformer's feed-forward part
    residual: bool = True  # predict a mix of the neighbours' expression plus a correction; else expression itself
    n_components: int = 10  # principal components of expression that the model works in; 0: the genes themselves
    members: str = "spabit,kriging,ridge"  # what predicts, names in ensemble.members.MEMBERS; weights by train spots


@dataclass
class TrainConfig:
    epochs: int = 200  # at most
    epoch_spots: int = 2048  # train spots in an epoch, drawn at random where there are more; 0: all
    batch_size: int = 128  # spots a step; the last batch of an epoch is short
    learning_rate: float = 1e-3
    weight_decay: float = 1e-2  # decoupled (AdamW); the reference has none
    neighbour_dropout: float = 0.5  # probability with which a training step hides each context spot
    validation_fraction: float = 0.1  # of train spots: they decide when to stop; not with no_validation
    patience: int = 40  # epochs without improvement before training stops, looked at every chunk_epochs
    chunk_epochs: int = 10  # epochs run between checkpoints, in one call


@dataclass
class Config:
    name: str = "default"  # the method's name in result files
    data: DataConfig = field(default_factory=DataConfig)
    gat: GATConfig = field(default_factory=GATConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    faults: Faults = field(default_factory=Faults)

    def validate(self) -> "Config":
        """Returns itself; raises InputError naming the first field whose value makes no sense."""
        positive = {
            "data": ["n_genes", "image_components"],
            "gat": ["n_neighbours", "heads", "head_width", "out_width", "mlp_width", "epochs", "learning_rate"],
            "model": ["n_context", "width", "mlp_width", "cross_heads", "heads", "head_width", "feedforward_width"],
            "train": ["epochs", "batch_size", "learning_rate", "patience", "chunk_epochs"],
        }
        for part, names in positive.items():
            for name in names:
                _check(getattr(getattr(self, part), name) > 0, f"{part}.{name}", "positive", self)
        not_negative = {
            "data": ["split_seed"],
            "gat": ["weight_decay"],
            "model": ["depth", "n_components"],
            "train": ["epoch_spots", "weight_decay"],
        }
        for name in (f"{part}.{name}" for part, names in not_negative.items() for name in names):
            _check(_get(self, name) >= 0, name, "0 or more", self)
        for name in ("data.train_fraction", "train.validation_fraction"):
            _check(0 < _get(self, name) < 1, name, "between 0 and 1", self)
        for name in ("gat.dropout", "model.cross_dropout", "train.neighbour_dropout"):
            _check(0 <= _get(self, name) < 1, name, "at least 0 and below 1", self)
        _check(self.gat.folds >= 2, "gat.folds", "at least 2", self)
        _check(self.data.scale in SCALES, "data.scale", f"one of {', '.join(SCALES)}", self)
        _check(self.data.split in SPLITS, "data.split", f"one of {', '.join(SPLITS)}", self)
        splits = ("same", *SPLITS)
        _check(self.data.related_split in splits, "data.related_split", f"one of {', '.join(splits)}", self)
        _check(
            self.data.image_transform in IMAGE_TRANSFORMS,
            "data.image_transform",
            f"one of {', '.join(IMAGE_TRANSFORMS)}",
            self,
        )
        _check(
            self.model.cross_attention in CROSS_ATTENTIONS,
            "model.cross_attention",
            f"one of {', '.join(CROSS_ATTENTIONS)}",
            self,
        )
        _check(self.model.width % self.model.cross_heads == 0, "model.width", "a multiple of model.cross_heads", self)
        _check(
            not (self.model.residual and self.faults.single_key),
            "model.residual",
            "False where faults.single_key is on: there are no neighbours to mix",
            self,
        )
        _check(
            not (self.gat.joint and self.faults.single_key),
            "gat.joint",
            "False where faults.single_key is on: there are no neighbours to attend to",
            self,
        )
        _check(
            not (self.model.n_components and self.faults.relu_output),
            "model.n_components",
            "0 where faults.relu_output is on: components are negative too",
            self,
        )
        _check(
            self.model.members == "spabit"
            or not (self.faults.no_validation or self.faults.self_in_gene_token)
            and self.data.image_transform == "components"
            and self.model.n_components > 0,
            "model.members",
            "spabit alone with faults.no_validation, faults.self_in_gene_token, data.image_transform=reference or "
            "model.n_components=0: it needs train spots that the network has not seen, and components",
            self,
        )
        return self

    def of_related(self) -> "Config":
        """The configuration for related sections, whose split may be another one."""
        if self.data.related_split == "same":
            return self
        return dataclasses.replace(self, data=dataclasses.replace(self.data, split=self.data.related_split))

    def to_dict(self) -> dict:
        """The configuration as nested dicts of plain values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict) -> "Config":
        """The configuration that ``to_dict`` gave, also before there were scales; TypeError for unknown fields."""
        model = dict(values["model"])
        if "companions" in model:  # as it was before there were other members
            model["members"] = "spabit,kriging,ridge" if model.pop("companions") else "spabit"
        values = values | {"data": {"scale": "log2_count"} | values["data"], "model": model}
        parts = {field.name: field.default_factory for field in dataclasses.fields(cls) if field.name != "name"}
        return cls(**{name: parts[name](**part) if name in parts else part for name, part in values.items()})


CROSS_ATTENTIONS = ("both", "image_to_gene", "gene_to_image")
SPLITS = ("lattice", "random", "block", "none")
IMAGE_TRANSFORMS = ("components", "reference")


def _get(config: Config, name: str):
    part, leaf = name.split(".")
    return getattr(getattr(config, part), leaf)


def _check(holds: bool, name: str, wanted: str, config: Config) -> None:
    if not holds:
        raise InputError(f"config.{name} is {_get(config, name)!r}: it must be {wanted}")
