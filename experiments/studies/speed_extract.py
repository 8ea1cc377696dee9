"""The stage ``extract`` of ``experiments.speed``: image features, the reference's way and the port's."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np


def torch_device(device: str) -> str:
    """PyTorch's name of a device."""
    return {"gpu": "cuda"}.get(device, device)


def oracle(device: str, _, n_patches: int):
    """The reference's way: one patch per forward pass, float32, timm's defaults."""
    model = _vit_large(device)
    for block in model.blocks:
        block.attn.fused_attn = True
    patches, embed = _embedding(model, device, autocast=False)

    def run():
        for i in range(n_patches):
            embed(np.array([patches[i]]))

    return {"whole": run}


def port(device: str, _, n_patches: int, autocast: bool):
    from feature_extraction.extract import DEFAULT_BATCH, batches

    patches, embed = _embedding(_vit_large(device), device, autocast)
    patches.centers = patches.centers[:n_patches]

    def run():
        for batch in batches(patches, 0, DEFAULT_BATCH[torch_device(device)], 0):
            embed(batch)

    return {"whole": run}


def _vit_large(device: str):
    """UNI's architecture with random weights."""
    import torch

    from feature_extraction import encoders

    torch.manual_seed(0)
    return encoders.build(encoders.ENCODERS["uni"]).to(torch_device(device))


def _embedding(model, device: str, autocast: bool):
    """256-px patches of noise, to be resized to 224, and the function from patches to features."""
    from feature_extraction import encoders
    from feature_extraction.patches import Patches

    encoder = encoders.ENCODERS["uni"]
    embed = encoders.embedding(model, encoder, torch_device(device), autocast)
    centers = np.random.default_rng(0).uniform(0, 4000, (2048, 2))
    return Patches(Noise(), centers, 256, size=encoder.size), embed


class Noise:
    """An image of noise, read like ``spabit_jax.readers.image.SlideImage``."""

    def read(self, x: int, y: int, width: int, height: int) -> np.ndarray:
        return np.random.default_rng([abs(x), abs(y)]).integers(0, 256, (height, width, 3), np.uint8)


def stain(n_spots: int, folder: str) -> float:
    """Seconds of ``stain`` features, from file to cache, of a noise JPEG as large as her2st's."""
    import anndata
    import pandas as pd
    from PIL import Image

    from feature_extraction.extract import extract_section

    rng = np.random.default_rng(0)
    path = Path(folder, "noise.jpg")
    small = Image.fromarray(rng.integers(0, 256, (990, 930, 3), np.uint8))
    small.resize((9300, 9900)).save(path)
    adata = anndata.AnnData(obs=pd.DataFrame(index=[f"spot_{i}" for i in range(n_spots)]))
    adata.obsm["spatial"] = rng.uniform(0, 1, (n_spots, 2)) * [9300, 9900]
    adata.uns["spabit"] = {"name": "noise", "image_path": str(path)}
    start = time.perf_counter()
    extract_section(adata, "stain", 224, folder)
    return time.perf_counter() - start
