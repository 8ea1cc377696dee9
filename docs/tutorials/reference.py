# %% [markdown]
# # Beside the reference
#
# For whoever wants to know whether this port does what the PyTorch original does, or has a paper's table and wants
# to put it beside numbers that were made here. Half a minute on two CPU cores; it needs PyTorch (`make env`).
#
# The section is simulated and the networks tiny, so that this can be run anywhere: the numbers below mean nothing,
# the table is read as one that does. What was found on real sections: [Beside the
# reference](../REFERENCE_COMPARISON.md).

# %%
import subprocess
import tempfile
from pathlib import Path

import pandas as pd

from spabit_jax.datasets.simulate import simulate_section, write_section

work = Path(tempfile.mkdtemp())
path = write_section(*simulate_section(seed=3, n_rows=14, n_cols=14, n_genes=60, name="S1"), work)

# %% [markdown]
# ## A table typed in by hand
#
# What a paper says of a section: dataset (the section's name), metric (PCC, MSE or MAE), mean, sd, and where it
# stands, for the reader. The numbers here are made up. A result file of the original, with rows PCC, MSE, MAE and
# cells `mean ± sd`, is read too.

# %%
(work / "paper.csv").write_text("""dataset,metric,mean,sd,source
S1,PCC,0.31,0.02,Table 2
S1,MSE,0.52,0.03,Table 2
S1,MAE,0.55,0.02,Table 2
""")
pd.read_csv(work / "paper.csv")

# %% [markdown]
# ## Both sides, run here
#
# `experiments.compare_reference` trains the original's network in PyTorch (written anew from what it computes, its
# faults included) and the port on the same panel, split, graph and features, one after the other, with the same
# seeds. Without `tiny` the networks have their published size and are trained as long as published: for hours.

# %%
command = f"python -m experiments.compare_reference --section={path} --reference_csv={work}/paper.csv"
command += f" --num_seeds=3 --gat_per_seed --patch_px=48 --cache_dir={work}/cache --out={work}/compare"
tiny = " --config.gat.heads=2 --config.gat.head_width=8 --config.gat.out_width=16 --config.gat.mlp_width=16"
tiny += " --config.model.width=16 --config.model.mlp_width=16 --config.model.depth=1 --config.model.heads=2"
tiny += " --config.model.head_width=8 --config.model.feedforward_width=16 --config.data.n_genes=40"
tiny += " --config.gat.epochs=40 --config.train.epochs=80"
done = subprocess.run((command + tiny).split(), check=True, capture_output=True, text=True)
print(done.stdout.splitlines()[-1])

# %%
comparison = pd.read_csv(work / "compare" / "comparison.csv").fillna("")
comparison.drop(columns="section")

# %% [markdown]
# `verdict` is Welch's 99.5% interval of the difference over the seeds: `equal` means that it holds zero, and says
# the more the smaller `standard_error` is. `pcc_defined` is the original's rule for genes whose prediction is
# constant (they are left out), which is why its table stands there; `pcc` counts them as 0. Gene by gene:

# %%
from IPython.display import Image

Image(str(work / "compare" / "S1_genes.png"), width=380)

# %% [markdown]
# ## The reference's own weights
#
# Someone who has trained the original need not train again: `experiments.import_reference` takes its `.pt` files
# into a run folder, from which predictions, metrics and report are made. Flags: `--help`.
