"""The README's picture: H&E, a quarter of the spots measured, four times as dense predicted, and how sure.

    python docs/picture.py data/151673 MBP docs/picture.jpg
"""

import sys

import matplotlib.pyplot as plt
import numpy as np

import spabit_jax as sj


def main(section: str, gene: str, path: str) -> None:
    prepared = sj.prepare(section, sj.Config())
    model = sj.fit(prepared)
    spots, dense = model.predict(), model.predict(sj.grid(prepared, 4))
    figure, axes = plt.subplots(1, 4, figsize=(16, 4.2), layout="constrained")
    sj.plot_gene(dense, gene, ax=axes[2])
    sj.plot_gene(dense, gene, layer="sd", ax=axes[3])
    given = spots[spots.obs["split"] == "train"]
    sj.plot_gene(given, gene, layer="truth", ax=axes[1])
    (library,) = spots.uns["spatial"].values()
    key = "hires" if "hires" in library["images"] else "lowres"
    image, scale = library["images"][key], library["scalefactors"][f"tissue_{key}_scalef"]
    axes[0].imshow(image, extent=(0, image.shape[1] / scale, image.shape[0] / scale, 0))
    axes[0].set(xticks=[], yticks=[])
    for ax in axes[:2]:
        ax.set(xlim=axes[2].get_xlim(), ylim=axes[2].get_ylim(), aspect="equal")
    correlation = np.corrcoef(*(spots[spots.obs["split"] == "test"].obs_vector(gene, layer=x) for x in (None, "truth")))
    axes[0].set_title(f"{prepared.name}: H&E")
    axes[1].set_title(f"{gene}: measured at {given.n_obs} of {spots.n_obs} spots")
    axes[2].set_title(f"predicted at {dense.n_obs} places (test spots: r = {correlation[0, 1]:.2f})")
    axes[3].set_title("sd of a measurement")
    figure.savefig(path, dpi=110, pil_kwargs={"quality": 88})


if __name__ == "__main__":
    main(*sys.argv[1:])
