"""``trained.py``, smaller and shorter: for ``make demo`` and for trying things out, under a minute a seed.

python -m experiments.run --section=PATH --config=experiments/configs/demo.py --out=runs/NAME --num_seeds=2
"""

from spabit_jax.presets import demo as get_config  # noqa: F401
