"""Trains seeds on as many CPU devices as asked for: ``on_devices.py FOLDER N``, with FOLDER/inputs.pickle."""

import os
import pickle
import sys
from pathlib import Path

folder, n_devices = Path(sys.argv[1]), sys.argv[2]
flags = os.environ.get("XLA_FLAGS", "")
os.environ["XLA_FLAGS"] = f"{flags} --xla_force_host_platform_device_count={n_devices}"

import jax  # noqa: E402
import numpy as np  # noqa: E402

from spabit_jax.training.network import Trainer  # noqa: E402

assert jax.device_count() == int(n_devices)
section, config, seeds = pickle.loads((folder / "inputs.pickle").read_bytes())
trainer = Trainer(section, config)
states = trainer.fit_seeds(seeds, folder)
spots = np.arange(len(section.xy))
predicted = [trainer.predict(state.chosen, spots, seed) for state, seed in zip(states, seeds, strict=True)]
losses = [state.losses for state in states]
np.savez(folder / f"on_{n_devices}.npz", predicted=predicted, losses=losses)
