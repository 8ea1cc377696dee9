"""The reference: SpaBiT as published, at its full size, with all its faults on.

    python -m experiments.run --section=PATH --config=experiments/configs/reference.py --out=runs/NAME --num_seeds=1

3000 epochs of the GAT, then 1000 of SpaBiT. On two CPU cores expect 10 to 20 minutes on a section of 200 spots and
hours on one of 3,000. A single fault is switched off as in --config.faults.relu_output=false.
"""

from spabit_jax.config import Config, DataConfig, Faults, GATConfig, ModelConfig, TrainConfig


def get_config() -> Config:
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
