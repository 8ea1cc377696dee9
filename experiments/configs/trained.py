"""SpaBiT trained on the section, with every fault of the reference switched off, averaged with kriging and ridge.

    python -m experiments.run --section=PATH --config=experiments/configs/trained.py --out=runs/NAME

The network sees the 16 nearest train spots of each spot, without its own expression in training as in use; kriging and
ridge regression, with which it is averaged, see all. Expect one to four minutes for five seeds on two CPU cores,
depending on the number of train spots (46 to 740).
"""

from spabit_jax.presets import trained as get_config  # noqa: F401
