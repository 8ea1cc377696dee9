"""The reference at its full size and with all its faults, 300 + 300 epochs: where ``experiments.ablate`` starts from.

python -m experiments.ablate --sections=data/C2.tsv.gz,data/MOB1.tsv --patch_px=224,32 --out=runs/ablate
"""

from experiments.configs import reference


def get_config():
    config = reference.get_config()
    config.gat.epochs = 300
    config.train.epochs = 300
    return config
