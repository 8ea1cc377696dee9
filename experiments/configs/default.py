"""The best that we have: SpaBiT in context, pretrained once on simulated tasks and not trained on the section.

    python -m experiments.run --section=PATH --config=experiments/configs/default.py --out=runs/NAME

Nothing is fitted but expression's principal components, and how far the train spots support each of 64 fixed Gaussian
processes. ``trained.py`` trains SpaBiT on the section instead.
"""

from spabit_jax.presets import default as get_config  # noqa: F401
