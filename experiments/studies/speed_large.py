"""Training and prediction of a section as large as Visium HD's, timed with its memory."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np

N_GENES, N_FEATURES, N_FIELDS = 300, 1024, 8
CHUNK = 20_000  # bins that are simulated at a time


def simulate(n_bins: int, folder: str) -> None:
    """``bins.h5ad``, a square lattice of about n bins with counts, and ``features.npy``, (n, 1024) float16."""
    import anndata
    import pandas as pd
    from scipy import sparse

    rng, side = np.random.default_rng(0), round(n_bins**0.5)
    array = np.stack(np.divmod(np.arange(side * side), side), axis=1)
    waves, phases = rng.normal(0, 0.03, (2, N_FIELDS)), rng.uniform(0, 2 * np.pi, N_FIELDS)
    to_genes, to_features = rng.normal(0, 0.5, (N_FIELDS, N_GENES)), rng.normal(0, 1, (N_FIELDS, N_FEATURES))
    features = np.lib.format.open_memmap(Path(folder, "features.npy"), "w+", np.float16, (len(array), N_FEATURES))
    counts = []
    for start in range(0, len(array), CHUNK):
        fields = np.sin(array[start : start + CHUNK] @ waves + phases)
        noise = rng.standard_normal((len(fields), N_FEATURES), np.float32)
        features[start : start + CHUNK] = fields @ to_features + noise
        counts.append(sparse.csr_matrix(rng.poisson(0.3 * np.exp(fields @ to_genes)).astype(np.float32)))
    features.flush()
    adata = anndata.AnnData(
        X=sparse.vstack(counts, format="csr"),
        obs=pd.DataFrame({"array_row": array[:, 0], "array_col": array[:, 1]}, [f"bin_{r}x{c}" for r, c in array]),
        var=pd.DataFrame(index=[f"GENE{i}" for i in range(N_GENES)]),
        obsm={"spatial": 29.2 * array[:, ::-1]},
    )
    adata.write_h5ad(Path(folder, "bins.h5ad"))


def train_and_predict(folder: str) -> dict[str, float]:
    """Seconds of ``default_fit``, all that comes before predicting, and of ``predict``."""
    from experiments.configs import default
    from spabit_jax.data.section import make_section
    from spabit_jax.data.split import split_spots
    from spabit_jax.ensemble.blend import fit_blend
    from spabit_jax.ensemble.members import estimate_spots, fit_members, make_members
    from spabit_jax.readers import read_section

    config = default.get_config()
    adata = read_section(Path(folder, "bins.h5ad"))
    start = time.perf_counter()
    features = np.load(Path(folder, "features.npy"), mmap_mode="r")
    section = make_section(adata, list(adata.var_names), split_spots(adata, "lattice"), features, config)
    del features  # pages of a file that was read are resident, too
    fitted = fit_members(make_members(config), section, [0])
    trained = time.perf_counter()
    held_out = {name: member.held_out() for name, member in fitted.items()}
    blend = fit_blend(section.expression[section.train_spots], held_out)
    blend.apply(estimate_spots(section, fitted, held_out, adata.n_obs))
    return {"default_fit": trained - start, "predict": time.perf_counter() - trained}
