from __future__ import annotations

import importlib.util
import sys

import anndata
import numpy as np
import pandas as pd
import pytest

from spabit_jax.errors import InputError
from spabit_jax.readers import read_section

installed = importlib.util.find_spec("spatialdata") is not None
needs_spatialdata = pytest.mark.skipif(not installed, reason="spatialdata is optional, and not installed")
pytestmark = [
    pytest.mark.filterwarnings("ignore:Call to deprecated class Scaler:DeprecationWarning"),  # ome_zarr, on import
    pytest.mark.filterwarnings("ignore:zarr v3 autosharding:UserWarning"),  # anndata, on writing
]

PIXELS = np.random.default_rng(0).integers(0, 256, (90, 120, 3), np.uint8)
ARRAY = np.array([(r, c) for r in range(8) for c in range(10)])
XY = 12.0 + 10 * ARRAY[:, ::-1]
BINS = (("08", slice(None)), ("16", slice(20)))
COUNTS = np.random.default_rng(1).poisson(2, (80, 4))
_XY = ("x", "y")
NAMES = np.array([f"spot{i:02}" for i in range(80)], object)


def table(region, instances=NAMES, rows=slice(None), array=True):
    from spatialdata.models import TableModel

    obs = pd.DataFrame(index=NAMES[rows])
    obs["region"] = pd.Categorical([region] * len(obs))
    obs["id"] = instances[rows]
    if array:
        obs["array_row"], obs["array_col"] = ARRAY[rows].T
    adata = anndata.AnnData(COUNTS[rows].astype(np.float32), obs=obs, var=pd.DataFrame(index=list("ABCD")))
    return TableModel.parse(adata, region=region, region_key="region", instance_key="id")


def image(pixels, transform, system="global"):
    from spatialdata.models import Image2DModel

    return Image2DModel.parse(pixels, dims=("y", "x", "c"), transformations={system: transform}, scale_factors=[2])


def write(path, tables, images=None, transform=None, system="global"):
    import spatialdata as sd
    from spatialdata.models import ShapesModel
    from spatialdata.transformations import Identity

    shapes = {
        region: ShapesModel.parse(
            XY, geometry=0, radius=3.0, index=NAMES, transformations={system: transform or Identity()}
        )
        for region in {t.uns["spatialdata_attrs"]["region"] for t in tables.values()}
    }
    sd.SpatialData(images=images or {}, shapes=shapes, tables=tables).write(path)
    return path


@needs_spatialdata
def test_spots_land_in_the_pixels_of_the_largest_image(tmp_path):
    from spatialdata.transformations import Affine, Identity, Scale, Sequence

    turned = np.array([[0, -2.0, 300], [2.0, 0, 40], [0, 0, 1]])  # pixels of the H&E image to global
    images = {
        "he": image(PIXELS, Affine(turned, input_axes=("x", "y"), output_axes=("x", "y"))),
        "lowres": image(PIXELS[::4, ::4], Identity()),
        "dapi": image(np.repeat(PIXELS[..., :1], 5, axis=2), Identity()),
        "elsewhere": image(np.tile(PIXELS, (2, 2, 1)), Identity(), system="other"),
    }
    rows = np.random.default_rng(2).permutation(80)
    stored = Affine(np.diag([0.5, 0.5, 1]) @ turned, input_axes=("x", "y"), output_axes=("x", "y"))
    to_global = Sequence([stored, Scale([2, 2], ("x", "y"))])
    path = write(tmp_path / "S.zarr", {"table": table("spots", rows=rows)}, images, to_global)
    adata = read_section(path)
    assert [*adata.obs_names] == [NAMES[i] for i in rows]
    np.testing.assert_allclose(adata.obsm["spatial"], XY[rows], atol=1e-9)
    np.testing.assert_array_equal(adata.X.toarray(), COUNTS[rows])
    np.testing.assert_array_equal(adata.obs[["array_row", "array_col"]], ARRAY[rows])
    info = adata.uns["spabit"]
    assert (info["name"], info["format"], info["lattice"]) == ("S", "spatialdata", "square")
    assert info["image_path"] == str(path.resolve() / "images/he") and "um_per_px" not in info
    assert info["spot_px"] == pytest.approx(6)  # twice the radius
    np.testing.assert_array_equal(adata.uns["spatial"]["S"]["images"]["hires"], PIXELS)


@needs_spatialdata
def test_without_an_image_and_without_array_coordinates(tmp_path):
    from spatialdata.transformations import Scale

    path = write(tmp_path / "S.zarr", {"table": table("spots", array=False)}, transform=Scale([3, 3], ("x", "y")))
    adata = read_section(path)
    np.testing.assert_allclose(adata.obsm["spatial"], 3 * XY)
    np.testing.assert_array_equal(adata.obs[["array_row", "array_col"]], ARRAY)
    assert "image_path" not in adata.uns["spabit"]


@needs_spatialdata
def test_a_preview_is_used_at_its_scale(tmp_path):
    from spatialdata.transformations import Scale

    images = {
        "hires": image(PIXELS, Scale([4, 4], ("x", "y"))),
        "lowres": image(PIXELS[::4, ::4], Scale([16, 16], _XY)),
    }
    path = write(tmp_path / "S.zarr", {"table": table("spots")}, images, Scale([3, 3], ("x", "y")))
    adata = read_section(path)
    np.testing.assert_allclose(adata.obsm["spatial"], 3 * XY)
    info, library = adata.uns["spabit"], adata.uns["spatial"]["S"]
    assert info["image_path"] == str(path.resolve() / "images/hires") and info["image_scale"] == 0.25
    assert library["scalefactors"]["tissue_hires_scalef"] == 0.25 and info["spot_px"] == pytest.approx(18)
    np.testing.assert_array_equal(library["images"]["hires"], PIXELS)


@needs_spatialdata
def test_bins_of_visium_hd(tmp_path):
    path = write(tmp_path / "S.zarr", {f"square_0{n}um": table(f"S_square_0{n}um", rows=rows) for n, rows in BINS})
    assert read_section(path).n_obs == 80
    adata = read_section(path, bin_um=16)
    assert adata.n_obs == 20 and adata.uns["spabit"]["um_per_px"] == pytest.approx(1.6)
    with pytest.raises(InputError, match=r"no bins of 2 µm: give --bin_um=8\|16"):
        read_section(path, bin_um=2)


@needs_spatialdata
def test_errors(tmp_path):
    def error(path, **kwargs) -> str:
        with pytest.raises(InputError) as caught:
            read_section(path, **kwargs)
        assert "\n" not in str(caught.value) and str(path) in str(caught.value)
        return str(caught.value)

    path = write(tmp_path / "two.zarr", {"a": table("spots"), "b": table("spots")})
    assert "holds 2 tables (a, b)" in error(path)
    path = write(tmp_path / "one.zarr", {"a": table("spots", instances=np.array(["nobody", *NAMES[1:]], object))})
    assert "position of spot spot00 is missing" in error(path)
    assert "leave --bin_um out" in error(path, bin_um=8)
    assert "leave --positions out" in error(path, positions=__file__)
    for file in path.rglob("*.parquet"):
        file.write_bytes(file.read_bytes()[:-30])
    assert "cannot be read as SpatialData" in error(path)


def test_the_package_to_install_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "spatialdata", None)
    (tmp_path / "S.zarr/tables").mkdir(parents=True)
    (tmp_path / "S.zarr/zarr.json").write_text("{}")
    with pytest.raises(InputError, match="pip install spatialdata"):
        read_section(tmp_path / "S.zarr")
