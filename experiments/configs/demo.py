"""The default, smaller and shorter: for ``make demo`` and for trying things out, under a minute a seed.

python -m experiments.run --section=PATH --config=experiments/configs/demo.py --out=runs/NAME --num_seeds=2
"""

from experiments.configs import default


def get_config():
    config = default.get_config()
    config.name = "demo"
    config.model.n_context = 12
    config.train.epochs = 100
    config.train.patience = 30
    return config
