from __future__ import annotations

import anndata
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from spabit_jax.readers.image import open_image


@pytest.fixture
def pixels() -> np.ndarray:
    """(90, 130, 3) uint8, smooth enough for a resize to mean something."""
    noise = np.random.default_rng(0).integers(0, 256, (9, 13, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(noise).resize((130, 90), Image.Resampling.BICUBIC))


@pytest.fixture
def section(tmp_path, pixels):
    """A section of 11 spots, some near the border of its image."""
    Image.fromarray(pixels).save(tmp_path / "image.png")
    rng = np.random.default_rng(1)
    adata = anndata.AnnData(obs=pd.DataFrame(index=[f"spot{i}-1" for i in range(11)]))
    adata.obsm["spatial"] = rng.uniform(0, 1, (11, 2)) * [130, 90]
    adata.uns["spabit"] = {"name": "S1", "image_path": str(tmp_path / "image.png"), "image_scale": 1.0}
    return adata


@pytest.fixture
def image(section):
    image = open_image(section.uns["spabit"]["image_path"])
    yield image
    image.close()


@pytest.fixture(scope="session")
def tiny_weights(tmp_path_factory):
    """Weights of ``timm:test_vit``, the smallest ViT of timm, as a file."""
    import timm
    import torch

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "tiny.bin"
    torch.save(timm.create_model("test_vit", num_classes=0).state_dict(), path)
    return path
