# %% [markdown]
# # From a Visium folder to a denser map
#
# For whoever has a Visium section and wants to see expression between its spots: read it, see how well it is
# predicted, draw a map four times as dense, and go on in scanpy or squidpy. Half a minute on two CPU cores.
#
# The section here is simulated and written as Space Ranger would, so that you can run this as it is. With a section
# of your own leave out the first cell, and give its folder in the second.

# %%
import tempfile
from pathlib import Path

from spabit_jax.datasets.simulate import simulate_section
from spabit_jax.datasets.simulate_formats import write_visium

work = Path(tempfile.mkdtemp())
simulated = simulate_section(seed=0, n_rows=18, n_cols=18, n_genes=120, pitch=80.0, name="demo")
folder = write_visium(*simulated, work / "demo")
sorted(str(path.relative_to(folder)) for path in folder.rglob("*.*"))

# %% [markdown]
# ## Read
#
# Which format it is is found out; [what can be read](../INPUTS.md). `X` has the raw counts, `obsm["spatial"]`
# pixels of the full-resolution image. The microscope's image lies in the folder here; one that lies elsewhere is
# given as `sj.read_section(folder, image="slide.tif")`.

# %%
import matplotlib.pyplot as plt

import spabit_jax as sj

plt.rcParams["figure.dpi"] = 70
# %config InlineBackend.figure_formats = ["jpeg"]
adata = sj.read_section(folder)
adata

# %% [markdown]
# ## How well can it be predicted?
#
# A quarter of the spots is given, the others are held out. `prepare` chooses the genes on the given spots alone and
# computes features of the image around each spot; `fit` takes seconds, because the default model comes pretrained.

# %%
section = sj.prepare(adata, sj.Config(), cache_dir=work / "cache")
model = sj.fit(section)
predictions = model.predict()
scores = sj.evaluate(predictions, model)
predictions

# %% [markdown]
# Beside it what anyone could do without the model, and the noise ceiling: what a perfect prediction would have,
# given the noise of counts.

# %%
import pandas as pd

summary = scores.attrs["summary"]
table = pd.DataFrame({"this model": summary["ensemble"], **summary["baselines"]}).T[["pcc", "mse", "mae"]]
table.loc["noise ceiling"] = [summary["ceiling"], None, None]
table.round(3)

# %%
gene = scores[scores["method"] == "default"].set_index("gene")["pcc"].idxmax()
figure, axes = plt.subplots(1, 3, figsize=(10, 3.2), layout="constrained")
given = predictions[predictions.obs["split"] == "train"]
sj.plot_gene(given, gene, layer="truth", ax=axes[0]).set_title(f"{gene}, given")
sj.plot_gene(predictions, gene, ax=axes[1])
sj.plot_gene(predictions, gene, layer="truth", ax=axes[2]).set_title(f"{gene}, measured")
plt.show()

# %% [markdown]
# ## The map
#
# For a map nothing is held out: every spot is given (`split="none"`). `sj.grid(section, 4)` is the section's own
# lattice, four times as dense along each axis, inside the tissue that the image shows. `layers["sd"]` says how sure
# a prediction is: the sd of a measurement there.

# %%
config = sj.Config()
config.data.split = "none"
section = sj.prepare(adata, config, cache_dir=work / "cache")
dense = sj.fit(section).predict(sj.grid(section, 4))
dense

# %%
figure, axes = plt.subplots(1, 2, figsize=(8, 3.6), layout="constrained")
sj.plot_gene(dense, gene, ax=axes[0])
sj.plot_gene(dense, gene, layer="sd", ax=axes[1])
plt.show()

# %% [markdown]
# ## Go on in scanpy
#
# The map is an AnnData like any other, on the scale that `uns["spabit"]["scale"]` names (log1p of normalised
# counts), with the image in `uns["spatial"]`.

# %%
import scanpy as sc
from sklearn.cluster import KMeans

dense.write_h5ad(work / "dense.h5ad")
dense = sc.read_h5ad(work / "dense.h5ad")
sc.pp.pca(dense, n_comps=10)
dense.obs["cluster"] = pd.Categorical(KMeans(5, random_state=0).fit_predict(dense.obsm["X_pca"]))
figure, ax = plt.subplots(figsize=(4.6, 4))
sc.pl.embedding(dense, "spatial", color="cluster", size=12, ax=ax, show=False)
ax.set(aspect="equal", title="clusters of predicted expression")
ax.invert_yaxis()
plt.show()

# %% [markdown]
# ## Go on in squidpy
#
# squidpy reads the same file, after `pip install squidpy` (tried with 1.8); the places are a quarter of a spot pitch
# apart, so they are drawn smaller than spots:
#
# ```python
# import squidpy as sq
#
# dense = sc.read_h5ad("dense.h5ad")
# sq.pl.spatial_scatter(dense, color="ERBB2", size=0.45)
# sq.gr.spatial_neighbors_knn(dense, n_neighs=6)
# sq.gr.spatial_autocorr(dense, mode="moran")
# ```
#
# ## The same from the command line
#
# ```
# python -m experiments.run --section=FOLDER --out=runs/demo
# python -m experiments.run --section=FOLDER --config.data.split=none --out=runs/demo_all
# python -m experiments.predict --run=runs/demo_all --locations=grid:4x --out=dense.h5ad
# ```
#
# leaves a report to pass on in `runs/demo/report.html`. How a section of yours is read, other genes, other image
# encoders: [Using it](../USING.md), [What can be read](../INPUTS.md).
