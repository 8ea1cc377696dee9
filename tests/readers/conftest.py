"""Small sections in the true layouts, written to disk."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tifffile
from PIL import Image
from tenx_files import GENES, write_h5, write_mtx


@pytest.fixture(autouse=True)
def _kept_images(tmp_path_factory, monkeypatch):
    """Images that are kept outside of the section's folder go into a folder of the test's."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "kept"))


class Visium:
    """7 × 11 array positions of a hexagonal lattice; the middle rows are in tissue, in an order of their own."""

    genes = GENES

    def __init__(self, folder: Path):
        rng = np.random.default_rng(0)
        array = [(r, c) for r in range(1, 8) for c in range(2, 24) if (r + c) % 2 == 0]
        table = pd.DataFrame(array, columns=["array_row", "array_col"])
        table.insert(0, "in_tissue", table["array_row"].between(2, 5).astype(int))
        table["pxl_row_in_fullres"] = np.rint(40 + 86.6 * table["array_row"]).astype(int)
        table["pxl_col_in_fullres"] = 30 + 50 * table["array_col"]
        table.insert(0, "barcode", [f"SPOT{i:03}-1" for i in rng.permutation(len(table))])
        self.folder, self.table = folder, table.sample(frac=1, random_state=1)
        self.spots = self.table[self.table["in_tissue"] == 1]
        self.barcodes = sorted(self.spots["barcode"])  # counts come in another order than positions
        self.counts = rng.poisson(3, (len(self.barcodes), len(GENES)))
        self.truth = pd.DataFrame(self.counts, index=self.barcodes).loc[self.spots["barcode"]].to_numpy()
        (folder / "spatial").mkdir(parents=True)

    def positions(self, file: str = "spatial/tissue_positions_list.csv", header: bool = False) -> Path:
        self.table.to_csv(self.folder / file, index=False, header=header)
        return self.folder / file

    def image(self, file: str, scale: float = 1.0) -> Path:
        Image.new("RGB", (round(1300 * scale), round(700 * scale)), (200, 120, 160)).save(self.folder / file)
        return self.folder / file

    def h5(self, barcodes: list[str] | None = None, types: list[str] | None = None) -> None:
        write_h5(self.folder / "filtered_feature_bc_matrix.h5", self.counts, barcodes or self.barcodes, types)

    def mtx(self, folder: str, columns: int = 3, barcodes: list[str] | None = None) -> None:
        write_mtx(self.folder / folder, self.counts, barcodes or self.barcodes, columns)

    def write(self) -> Path:
        """Space Ranger 1: .h5, positions without a header, hires and lowres images."""
        self.h5()
        self.positions()
        self.image("spatial/tissue_hires_image.png", 0.5)
        self.image("spatial/tissue_lowres_image.png", 0.1)
        factors = {"spot_diameter_fullres": 55.0, "tissue_hires_scalef": 0.5, "tissue_lowres_scalef": 0.1}
        (self.folder / "spatial" / "scalefactors_json.json").write_text(json.dumps(factors))
        return self.folder


@pytest.fixture
def visium(tmp_path) -> Visium:
    return Visium(tmp_path / "S1")


class LegacyST:
    """5 × 4 spots, one of them not selected, one without counts, and counts of a spot that is nowhere."""

    def __init__(self, folder: Path):
        rng = np.random.default_rng(0)
        xy = [(x, y) for x in range(3, 8) for y in range(11, 15)]
        self.table = pd.DataFrame(xy, columns=["x", "y"])
        self.table["new_x"], self.table["new_y"] = self.table["x"] + 0.02, self.table["y"] - 0.02
        self.table["pixel_x"], self.table["pixel_y"] = 40.5 * self.table["x"], 40.5 * self.table["y"]
        self.table["selected"] = [0, *[1] * 19]
        self.spots = [f"{x}x{y}" for x, y in xy[2:]]  # with counts and selected
        names = [*reversed(self.spots), f"{xy[0][0]}x{xy[0][1]}", "30x30"]
        self.counts = pd.DataFrame(rng.poisson(2, (len(names), 3)), index=names, columns=["B", "A", "C"])
        self.path = folder / "C2.tsv.gz"

    def write(self, positions: str = "C2_selection.tsv") -> Path:
        self.counts.to_csv(self.path, sep="\t")
        self.table.to_csv(self.path.parent / positions, sep="\t", index=False)
        return self.path


@pytest.fixture
def legacy_st(tmp_path) -> LegacyST:
    return LegacyST(tmp_path)


class VisiumHD:
    """Bins of 8 µm (12 × 10) and of 16 µm (6 × 5), a little turned against the image as on a real slide."""

    um_per_px = 0.4
    turn = np.deg2rad(1.5)

    def __init__(self, folder: Path):
        self.folder, self.table, self.counts = folder, {}, {}
        for size in (8, 16):
            rng = np.random.default_rng(size)
            array = np.array([(r, c) for r in range(96 // size) for c in range(80 // size)])
            u = (array[:, ::-1] + 0.5) * size / self.um_per_px  # (x, y) on the slide
            cos, sin = np.cos(self.turn), np.sin(self.turn)
            xy = 30 + u @ np.array([[cos, sin], [-sin, cos]])
            table = pd.DataFrame(array, columns=["array_row", "array_col"])
            table.insert(0, "barcode", [f"s_{size:03}um_{r:05}_{c:05}-1" for r, c in array])
            table.insert(1, "in_tissue", (array[:, 0] > 0).astype(int))
            table["pxl_row_in_fullres"], table["pxl_col_in_fullres"] = xy[:, 1], xy[:, 0]
            self.table[size] = table
            self.counts[size] = rng.poisson(1, (len(table), len(GENES)))

    def spots(self, size: int) -> tuple[pd.DataFrame, np.ndarray]:
        """Positions of the bins in tissue, and their (N, G) counts."""
        inside = (self.table[size]["in_tissue"] == 1).to_numpy()
        return self.table[size][inside], self.counts[size][inside]

    def bins(self, size: int) -> Path:
        return self.folder / "binned_outputs" / f"square_{size:03}um"

    def write(self) -> Path:
        for size in self.table:
            (self.bins(size) / "spatial").mkdir(parents=True)
            table, counts = self.spots(size)
            order = np.random.default_rng(1).permutation(len(table))
            barcodes = [*table["barcode"].iloc[order]]
            write_h5(self.bins(size) / "filtered_feature_bc_matrix.h5", counts[order], barcodes)
            self.table[size].to_parquet(self.bins(size) / "spatial/tissue_positions.parquet")
            factors = {
                "spot_diameter_fullres": size / self.um_per_px,
                "bin_size_um": float(size),
                "microns_per_pixel": self.um_per_px,
                "tissue_hires_scalef": 0.5,
                "tissue_lowres_scalef": 0.1,
            }
            (self.bins(size) / "spatial/scalefactors_json.json").write_text(json.dumps(factors))
            for key, scale in (("hires", 0.5), ("lowres", 0.1)):
                image = Image.new("RGB", (round(270 * scale), round(310 * scale)), (200, 120, 160))
                image.save(self.bins(size) / f"spatial/tissue_{key}_image.png")
        return self.folder


@pytest.fixture
def visium_hd(tmp_path) -> VisiumHD:
    return VisiumHD(tmp_path / "HD1")


class Xenium:
    """60 cells anywhere on an H&E image that is turned by 90°, mirrored nowhere, and of another scale than Xenium's."""

    pixel_um = 0.2125
    he_um = 0.3  # of a pixel of the H&E image
    width, height = 400, 300

    def __init__(self, folder: Path):
        rng = np.random.default_rng(0)
        scale = self.he_um / self.pixel_um
        self.alignment = np.array([[0, -scale, 900.0], [scale, 0, 150.0], [0, 0, 1]])
        self.xy = rng.uniform([20, 20], [self.width - 20, self.height - 20], (60, 2))
        self.um = (self.xy @ self.alignment[:2, :2].T + self.alignment[:2, 2]) * self.pixel_um
        self.ids = [f"cell{i:04}-1" for i in rng.permutation(60)]
        self.counts = rng.poisson(2, (60, len(GENES)))
        self.folder = folder
        folder.mkdir()

    def cells(self, ids=None) -> pd.DataFrame:
        columns = {
            "cell_id": self.ids if ids is None else ids,
            "x_centroid": self.um[:, 0],
            "y_centroid": self.um[:, 1],
        }
        return pd.DataFrame(columns | {"transcript_counts": self.counts.sum(1), "cell_area": 50.0})

    def align(self, matrix=None) -> Path:
        path = self.folder / "S_he_imagealignment.csv"
        pd.DataFrame(self.alignment if matrix is None else matrix).to_csv(path, header=False, index=False)
        return path

    def h5(self, ids=None) -> None:
        types = ["Gene Expression"] * 4 + ["Negative Control Probe"]
        order = np.random.default_rng(2).permutation(60)
        ids = np.array(self.ids if ids is None else ids)[order]
        write_h5(self.folder / "cell_feature_matrix.h5", self.counts[order], [*ids], types)

    def write(self) -> Path:
        self.h5()
        self.cells().to_parquet(self.folder / "cells.parquet")
        (self.folder / "experiment.xenium").write_text(json.dumps({"pixel_size": self.pixel_um, "num_cells": 60}))
        self.align()
        pixels = np.full((self.height, self.width, 3), 200, np.uint8)
        tifffile.imwrite(self.folder / "S_he_image.ome.tif", pixels, photometric="rgb", tile=(64, 64))
        return self.folder


@pytest.fixture
def xenium(tmp_path) -> Xenium:
    return Xenium(tmp_path / "X1")
