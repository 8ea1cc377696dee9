"""The reference: SpaBiT as published, at its full size, with all its faults on.

    python -m experiments.run --section=PATH --config=experiments/configs/reference.py --out=runs/NAME --num_seeds=1

3000 epochs of the GAT, then 1000 of SpaBiT. On two CPU cores expect 10 to 20 minutes on a section of 200 spots and
hours on one of 3,000. A single fault is switched off as in --config.faults.relu_output=false.
"""

from spabit_jax.presets import reference as get_config  # noqa: F401
