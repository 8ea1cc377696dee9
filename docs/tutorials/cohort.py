# %% [markdown]
# # A cohort of your own
#
# For whoever has several sections of one tissue: which method is best on them, do they help each other, and one
# table to show for it. A minute on two CPU cores.
#
# The cohort here is one simulated piece of tissue, cut in three; each part is written as an AnnData with its image
# beside it, which is one of the forms that are [read](../INPUTS.md). With sections of your own leave out the next
# two cells.

# %%
import subprocess
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from spabit_jax.datasets.simulate import simulate_section

work = Path(tempfile.mkdtemp())
adata, image = simulate_section(seed=1, n_rows=12, n_cols=36, n_genes=100, pitch=90.0)
adata.X = adata.X.astype(np.int32)
del adata.uns, adata.layers["mu"], adata.obsm["histology"]
adata

# %%
x = adata.obsm["spatial"][:, 0]
ends = np.linspace(0, image.shape[1], 4).astype(int)
sections = []
for i, (left, right) in enumerate(zip(ends[:-1], ends[1:], strict=True)):
    part = adata[(x >= left) & (x < right)].copy()
    part.obsm["spatial"] = part.obsm["spatial"] - [left, 0]
    sections.append(work / f"P{i + 1}.h5ad")
    part.write_h5ad(sections[-1])
    Image.fromarray(image[:, left:right]).save(sections[-1].with_suffix(".png"))
    print(sections[-1].name, part.n_obs, "spots")

# %% [markdown]
# ## The table
#
# One command compares baselines and models on all sections under one protocol: a quarter of the spots is given, the
# others are predicted. `NAME_related` is the method `NAME` learning from the given spots of the other sections too,
# those that `--related` joins by +. What is done already is not done again, so that sections and methods can be added
# later.

# %%
import pandas as pd

paths = ",".join(map(str, sections))
command = f"python -m experiments.benchmark --sections={paths} --related=P1+P2+P3 --config.data.n_genes=40"
command += " --methods=knn_mean,ridge_neighbours,kriging,default,default_related"
command += f" --cache_dir={work}/cache --out={work}/benchmark"
done = subprocess.run(command.split(), check=True, capture_output=True, text=True)
print(done.stdout.splitlines()[-1])

# %%
results = pd.read_csv(work / "benchmark" / "results.csv")
final = results[results["seed"].isin(["ensemble"]) | results["seed"].isna()]
final.pivot(index="section", columns="method", values="pcc").round(3)

# %% [markdown]
# ## Do the others help?
#
# `default_related` beside `default` says so. For one section the same is
#
# ```python
# import spabit_jax as sj
#
# section = sj.prepare("P1.h5ad", related=["P2.h5ad", "P3.h5ad"])
# predictions = sj.fit(section).predict()
# ```
#
# and on the command line `experiments.run --section=P1.h5ad --related=P2.h5ad,P3.h5ad`; with
# `--config.data.related_split=none` all spots of the others are learned from, and with
# `--config.data.split=image_only` none of the section's own.

# %% [markdown]
# ## For a document
#
# `results.md` has the same for a document, with means, errors and intervals; `genes.csv` each gene; and there is a
# figure: accuracy as a share of what the noise of counts allows.

# %%
from IPython.display import Image as Show

Show(str(work / "benchmark" / "benchmark.png"), width=560)

# %% [markdown]
# ## Many configurations
#
# `experiments.sweep` runs sections × configurations, here, on local workers or on Slurm, and goes on where it was
# interrupted:
#
# ```
# python -m experiments.sweep --sections=P1.h5ad,P2.h5ad,P3.h5ad --configs=default,trained,mine.py \
#     --executor=local --workers=2 --out=runs/sweep
# ```
#
# leaves a run folder for each, and the same `results.csv`. Choose between configurations by what happens on train
# spots, and look at test spots once, to report. How a configuration is written: [a network or a member of your
# own](member.ipynb).
