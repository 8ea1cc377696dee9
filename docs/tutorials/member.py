# %% [markdown]
# # A network or a member of your own
#
# For whoever has an idea and wants its number: another way to fuse image and expression in SpaBiT, or another way
# to predict altogether. Nothing of the library is changed for it. A minute on two CPU cores; the section is small
# and training short, so that the numbers here say nothing about either idea.
#
# [EXTENDING.md](../EXTENDING.md) has the same for the command line, and encoders, features, splits and losses.

# %%
import tempfile
from pathlib import Path

import pandas as pd

import spabit_jax as sj
from spabit_jax.datasets.simulate import simulate_section, write_section

work = Path(tempfile.mkdtemp())
path = write_section(*simulate_section(seed=2, n_rows=16, n_cols=14, n_genes=80, pitch=80.0, name="small"), work)
adata = sj.read_section(path)

# %% [markdown]
# ## Another fusion module
#
# In SpaBiT what image queries found in expression, and expression queries in the image, is fused by one linear
# layer. Say each token should decide how much of either it takes. A model is a class with a name in `MODELS`:

# %%
import jax.numpy as jnp
from flax import nnx

from spabit_jax.models import MODELS
from spabit_jax.models.layers import linear
from spabit_jax.models.spabit import SpaBiT


class GatedFusion(nnx.Module):
    def __init__(self, width, *, rngs):
        self.gate = linear(2 * width, width, rngs=rngs)

    def __call__(self, both):  # (B, M, 2 W)
        of_image, of_genes = jnp.split(both, 2, axis=-1)
        gate = nnx.sigmoid(self.gate(both))
        return gate * of_image + (1 - gate) * of_genes  # (B, M, W)


class GatedSpaBiT(SpaBiT):
    def __init__(self, n_scores, n_features, config, *, rngs):
        super().__init__(n_scores, n_features, config, rngs=rngs)
        self.fusion = GatedFusion(config.model.width, rngs=rngs)


MODELS["gated"] = GatedSpaBiT

# %% [markdown]
# Its number, beside that of SpaBiT as it is. `members="spabit"` leaves out kriging and ridge regression, which
# would be averaged with the network otherwise. `valid_loss`, on train spots that were held out, is what to choose
# by; test spots are for the report.

# %%
rows = {}
for name in ("spabit", "gated"):
    config = sj.presets.trained()
    config.name = config.model.name = name
    config.model.members = "spabit"
    config.data.n_genes, config.train.epochs = 40, 30
    model = sj.fit(sj.prepare(adata, config, cache_dir=work / "cache"), seeds=2)
    scores = sj.evaluate(model.predict(), model)
    best = model.history.groupby("seed")["valid_loss"].min().mean()
    rows[name] = {"valid_loss": best, "PCC on test spots": scores.attrs["summary"]["ensemble"]["pcc"]}
pd.DataFrame(rows).T.round(3)

# %% [markdown]
# ## Another member
#
# What predicts are members, and several are averaged. A member is fitted to a section, and says what it predicts at
# each train spot as if that had never been measured, from which its weight is found, and anywhere else.

# %%
import numpy as np
from sklearn.neighbors import KNeighborsRegressor

from spabit_jax.ensemble.interface import Estimate, HeldOut


class Nearest:
    """The mean of the 6 nearest train spots."""

    def __init__(self, config):
        self.neighbours = KNeighborsRegressor(6)

    def fit(self, section, *, seeds, folder=None):
        train = section.train_spots
        self.expression = section.expression[train]
        self.neighbours.fit(section.xy[train], self.expression)
        return self

    def held_out(self):  # at the n train spots, from the others
        _, others = self.neighbours.kneighbors()
        mean = self.expression[others].mean(axis=1)
        return HeldOut(Estimate(mean[None], None), unseen=np.ones((1, len(mean)), bool))

    def predict(self, places):  # (1, n, G): one for each seed, or one for all
        return Estimate(self.neighbours.predict(places.xy)[None], None)


sj.register_member("nearest", Nearest)

# %%
config = sj.Config()
config.name, config.model.members = "with_nearest", "pretrained,nearest"
config.data.n_genes = 40
model = sj.fit(sj.prepare(adata, config, cache_dir=work / "cache"))
summary = sj.evaluate(model.predict(), model).attrs["summary"]
table = pd.DataFrame(summary["members"]).T
table["weight"] = model.weights
table.loc["average"] = summary["ensemble"]
table.round(3)

# %% [markdown]
# Weights come from held-out train spots: a member that adds nothing gets none. It predicts between the spots at
# once:

# %%
model.predict("grid:2x")

# %% [markdown]
# ## The benchmark
#
# In a file with a `get_config()`, as [EXTENDING.md](../EXTENDING.md) has it, either is a configuration for every
# command. On several sections, beside all baselines:
#
# ```
# python -m experiments.benchmark --sections=data/C2.tsv.gz,data/C3.tsv.gz --config=gated.py --out=runs/benchmark_gated
# ```
