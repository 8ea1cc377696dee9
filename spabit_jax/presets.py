"""Configurations by name, as in ``--config=default``; ``experiments/configs`` has the same as files."""

from __future__ import annotations

from spabit_jax.config import Config, DataConfig, Faults, GATConfig, ModelConfig, TrainConfig


def default() -> Config:
    """The best that we have: SpaBiT that was pretrained once and is not trained on the section."""
    return Config()


def trained() -> Config:
    """SpaBiT trained on the section, averaged with kriging and ridge regression; no fault of the reference."""
    config = Config(name="trained")
    config.data.image_components = 20
    config.model.members = "spabit,kriging,ridge"
    return config


def demo() -> Config:
    """``trained``, smaller and shorter: for trying things out, under a minute a seed."""
    config = trained()
    config.name = "demo"
    config.model.n_context = 12
    config.train.epochs = 100
    config.train.patience = 30
    return config


def reference() -> Config:
    """The reference: SpaBiT as published, at its full size, with all its faults on."""
    return Config(
        name="reference",
        data=DataConfig(
            scale="log2_count", panel="reference", n_genes=300, windows="224px", image_transform="reference"
        ),
        gat=GATConfig(joint=False, heads=6, head_width=650, out_width=1024, dropout=0.2),
        model=ModelConfig(
            width=1024,
            mlp_width=2048,
            cross_heads=8,
            depth=4,
            heads=4,
            head_width=64,
            feedforward_width=1024,
            residual=False,
            n_components=0,
            members="spabit",
        ),
        train=TrainConfig(epochs=1000, epoch_spots=0, learning_rate=1e-3, weight_decay=0.0, neighbour_dropout=0.0),
        faults=Faults(
            single_key=True,
            batch_attention=True,
            self_in_gene_token=True,
            no_validation=True,
            transposed_crop=True,
            array_neighbours=True,
            relu_output=True,
        ),
    )


PRESETS = {preset.__name__: preset for preset in (default, trained, demo, reference)}


def get_config(name: str) -> Config:
    """The preset of that name, for ``--config``."""
    return PRESETS[name]()
