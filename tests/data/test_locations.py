"""Denser lattices, grids in µm, lists; continued array coordinates; tissue."""

import json

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy import ndimage
from scipy.spatial import KDTree

from spabit_jax.data.locations import FURTHEST, continued, find_locations, grid, read_locations
from spabit_jax.data.tissue import on_tissue, tissue_mask
from spabit_jax.errors import InputError


def section(array, xy, um_per_px=None, image=None, scale=1.0):
    adata = anndata.AnnData(
        np.ones((len(xy), 2), np.float32),
        obs=pd.DataFrame(array, columns=["array_row", "array_col"], index=[f"s{i}" for i in range(len(xy))]),
        obsm={"spatial": np.asarray(xy, float)},
        uns={"spabit": {"name": "S"} | ({} if um_per_px is None else {"um_per_px": um_per_px})},
    )
    if image is not None:
        adata.uns["spatial"] = {"S": {"images": {"hires": image}, "scalefactors": {"tissue_hires_scalef": scale}}}
    return adata


def lattice(kind, n=7):
    """Array (row, col) and pixels of an n x n array, pitch 40, turned by 0.1 rad; ``off`` is off the lattice."""
    row, col = (a.ravel() for a in np.mgrid[:n, :n])
    if kind == "square":
        array, xy = np.stack([row, col], 1), 40.0 * np.stack([col, row], 1)
    else:
        array = np.stack([row, 2 * col + row % 2], 1)
        height = 3**0.5 / 2 if kind == "hex" else 0.5
        xy = 40.0 * np.stack([array[:, 1] / 2, height * array[:, 0]], 1)
    turn = np.array([[np.cos(0.1), -np.sin(0.1)], [np.sin(0.1), np.cos(0.1)]])
    return array, xy @ turn.T + 200


@pytest.mark.parametrize("kind", ["square", "hex", "staggered"])
@pytest.mark.parametrize("times", [2, 3])
def test_a_denser_lattice_is_the_same_one_smaller(kind, times):
    array, xy = lattice(kind)
    found = grid(section(array, xy), times)
    assert len(np.unique(np.round(found.xy, 6), axis=0)) == len(found.xy)
    # every spot is a location, with its own array coordinates
    distance, at = KDTree(found.xy).query(xy)
    np.testing.assert_array_equal(distance, 0)
    np.testing.assert_allclose(found.array[at], array, atol=1e-6)
    # neighbours of an inner spot are those of the spots, at 1 / times the distance
    middle = np.argmin(np.linalg.norm(xy - xy.mean(0), axis=1))
    of_spots = np.sort(np.linalg.norm(xy - xy[middle], axis=1))[1:5]
    of_locations = np.sort(np.linalg.norm(found.xy - xy[middle], axis=1))[1:5]
    np.testing.assert_allclose(of_locations, of_spots / times, rtol=1e-6)
    # per spot, times² locations, but for the rim
    inner = np.linalg.norm(found.xy - xy.mean(0), axis=1) < 60
    expected = np.pi * 60**2 / (40**2 * {"square": 1, "hex": 3**0.5 / 2, "staggered": 0.5}[kind]) * times**2
    assert inner.sum() == pytest.approx(expected, rel=0.15)


@pytest.mark.parametrize("kind", ["square", "hex", "staggered"])
def test_a_denser_lattice_does_not_depend_on_the_order_of_spots(kind):
    array, xy = lattice(kind)
    xy = np.round(xy + np.random.default_rng(0).normal(0, 1, xy.shape))
    order = np.random.default_rng(1).permutation(len(xy))
    found, other = grid(section(array, xy), 2), grid(section(array[order], xy[order]), 2)
    np.testing.assert_array_equal(found.array, other.array)
    np.testing.assert_allclose(found.xy, other.xy, atol=1e-6)


def test_a_lattice_runs_through_spots_that_lie_off_it():
    array, xy = lattice("square")
    xy = xy + np.random.default_rng(0).normal(0, 4, xy.shape)  # a tenth of the pitch
    found = grid(section(array, xy), 2)
    distance, at = KDTree(found.xy).query(xy)
    np.testing.assert_allclose(distance, 0, atol=1e-6)
    halfway = np.flatnonzero((found.array == [3, 3.5]).all(axis=1))
    a, b = (xy[(array == place).all(axis=1)][0] for place in ([3, 3], [3, 4]))
    np.testing.assert_allclose(found.xy[halfway[0]], (a + b) / 2, atol=1e-6)


def test_continued_is_exact_for_affine_maps_and_beyond_the_hull():
    rng = np.random.default_rng(1)
    known, at = rng.uniform(0, 10, (40, 2)), rng.uniform(-5, 15, (60, 2))
    turn, shift = np.array([[3.0, 1], [-2, 5]]), np.array([7.0, -3])
    np.testing.assert_allclose(continued(known, known @ turn + shift, at), at @ turn + shift, atol=1e-9)
    with pytest.raises(InputError, match="one line"):
        continued(np.arange(8).reshape(4, 2), rng.normal(size=(4, 2)), at)


def test_a_grid_in_micrometres_has_that_pitch_and_array_coordinates():
    array, xy = lattice("hex")
    found = find_locations(section(array, xy, um_per_px=2.5), "um:25")
    assert np.median(KDTree(found.xy).query(found.xy, k=2)[0][:, 1]) == pytest.approx(10)
    assert KDTree(xy).query(found.xy)[0].max() <= 40 + 1e-6
    # array coordinates are those of the affine map of the lattice
    full = np.c_[xy, np.ones(len(xy))]
    expected = np.c_[found.xy, np.ones(len(found.xy))] @ np.linalg.lstsq(full, array, rcond=None)[0]
    np.testing.assert_allclose(found.array, expected, atol=1e-6)
    with pytest.raises(InputError, match=r"not known in µm.*grid:Nx"):
        find_locations(section(array, xy), "um:25")


def test_a_list_of_locations(tmp_path):
    array, xy = lattice("square")
    adata, path = section(array, xy), tmp_path / "places.csv"
    pd.DataFrame({"name": ["a", "b"], "x": xy[:2, 0], "y": xy[:2, 1] + 1}).to_csv(path, index=False)
    found = read_locations(adata, path)
    assert list(found.names) == ["a", "b"]
    np.testing.assert_allclose(found.xy, xy[:2] + [0, 1])
    pd.DataFrame({"y": xy[:2, 1], "x": xy[:2, 0]}).to_csv(path, index=False)
    assert list(read_locations(adata, path).names) == ["grid_0", "grid_1"]
    pd.DataFrame({"X": xy[:2, 0], " Y": xy[:2, 1], "Name": ["01", "1"]}).to_csv(path, index=False, sep=";")
    found = read_locations(adata, path)
    assert list(found.names) == ["01", "1"]
    np.testing.assert_allclose(found.xy, xy[:2])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x,z\n1,2\n", "no column y"),
        ("x,y\n1,two\n", "row 1 is not a number"),
        ("x,y\n", "no location"),
        ("", "not a readable CSV"),
        ("name,x,y\na,200,200\na,201,200\n", "occurs twice"),
        ("x,y\n2000,200\n", "spot pitches from the nearest spot"),
    ],
)
def test_bad_lists_are_named(tmp_path, text, message):
    path = tmp_path / "bad.csv"
    path.write_text(text)
    with pytest.raises(InputError, match=message) as error:
        read_locations(section(*lattice("square")), path)
    assert "bad.csv" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("asked", ["grid:2", "grid:0x", "grid:x", "um:", "um:wide", "um:-1", "um:nan", "dense"])
def test_unknown_kinds_are_named(asked):
    with pytest.raises(InputError, match=asked):
        find_locations(section(*lattice("square"), um_per_px=1.0), asked)


def test_too_many_and_no_lattice():
    array, xy = lattice("square")
    for asked in ("grid:999x", "um:0.01"):
        with pytest.raises(InputError, match="ask for fewer"):
            find_locations(section(array, xy, um_per_px=1.0), asked)
    array[1] = array[0]
    with pytest.raises(InputError, match="no lattice"):
        grid(section(array, xy), 2)
    for asked in ("grid:2x", "um:20"):
        with pytest.raises(InputError, match="lie on one line"):
            find_locations(section([[i, 0] for i in range(9)], [[5, 40 * i] for i in range(9)], um_per_px=1.0), asked)


def he_image(shape=(300, 300), grey=255):
    """A pink disk of radius 100 with a white hole of radius 6 and a cut at its right, on a slide with a dark mark."""
    y, x = np.mgrid[: shape[0], : shape[1]]
    image = np.full((*shape, 3), grey, np.uint8)
    disk = np.hypot(x - 150, y - 150) < 100
    disk &= ~((np.abs(y - 150) < 14) & (x > 170))
    image[disk & (np.hypot(x - 120, y - 120) > 6)] = [205, 130, 175]
    image[5:25, 5:25] = 90  # a fiducial: dark, without colour
    return image, ndimage.binary_fill_holes(disk)


@pytest.mark.parametrize("grey", [250, 170])
def test_tissue_is_told_from_the_slide(grey):
    image, tissue = he_image(grey=grey)
    assert (tissue_mask(image, 2.0) != tissue).mean() < 0.02
    assert not tissue_mask(np.full((40, 40, 3), 200, np.uint8), 2.0).any()


@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_locations_lie_on_the_tissue_of_the_image(scale):
    image, tissue = he_image()
    row, col = (a.ravel() for a in np.mgrid[:15, :15])
    xy = 20.0 * np.stack([col, row], 1) + 10
    on = tissue[xy[:, 1].astype(int), xy[:, 0].astype(int)]
    adata = section(np.stack([row, col], 1)[on], xy[on] / scale, image=image, scale=scale)
    found = grid(adata, 4)
    x, y = (found.xy * scale).T
    inside = tissue[y.astype(int), x.astype(int)]
    assert inside.mean() > 0.95  # but for the blur
    assert not ((np.abs(y - 150) < 6) & (x > 185)).any()  # nothing in the cut
    assert len(found.xy) == pytest.approx(tissue.sum() / 5**2, rel=0.05)  # all of the tissue


def test_where_the_image_shows_no_tissue_the_hull_of_the_spots_is_taken(caplog):
    array, xy = lattice("square")
    plain = section(array, xy)
    image = np.full((500, 500, 3), 240, np.uint8)
    image[:40, :40] = [200, 90, 160]  # a stain far from all spots
    odd = section(array, xy, image=image)
    places = np.random.default_rng(0).uniform(100, 500, (2000, 2))
    np.testing.assert_array_equal(on_tissue(odd, places), on_tissue(plain, places))
    assert "only 0% of the spots" in caplog.text
    inside = on_tissue(plain, places)
    low, high = xy.min(0), xy.max(0)
    assert 0 < inside.sum() < len(places)
    assert ((places[inside] >= low - 12) & (places[inside] <= high + 12)).all()
    assert on_tissue(plain, xy).all()


def test_a_hole_of_several_pitches_between_spots_stays_empty():
    array, xy = lattice("square", 11)
    kept = np.linalg.norm(array - 5, axis=1) > 3
    found = grid(section(array[kept], xy[kept]), 2)
    assert np.linalg.norm(found.array - 5, axis=1).min() > 2
    assert KDTree(xy[kept]).query(found.xy)[0].max() <= 40 + 1e-6 < FURTHEST * 40


@pytest.fixture
def adata():
    return section(*lattice("square"))


def geojson(path, *features):
    path.write_text(json.dumps({"type": "FeatureCollection", "features": list(features)}))
    return path


def cell(ring, kind="Polygon", **more):
    return {"type": "Feature", "geometry": {"type": kind, "coordinates": ring}, **more}


def around(x, y):
    """An L of three squares of 2 px: its centroid is not the mean of its corners."""
    corners = [(0, 0), (4, 0), (4, 2), (2, 2), (2, 4), (0, 4), (0, 0)]
    return [[[x + dx, y + dy] for dx, dy in corners]]


def test_cells_are_predicted_at_their_centroids(adata, tmp_path):
    x, y = adata.obsm["spatial"][0]
    wanted = np.array([[x + 5 / 3, y + 5 / 3], [x + 11 + 5 / 3, y + 5 / 3], [x + 3, y], [x + 9, y + 9]])
    far = cell([x + 1e6, y], "Point", id="far")
    cells = [
        cell(around(x, y), id="a"),
        cell([around(x + 11, y), [[[x, y], [x + 1, y], [x, y + 1]]]], "MultiPolygon", properties={"cell_id": 7}),
        cell([x + 3, y], "Point", properties={"name": "c"}),
        cell([[[x + 9, y + 9], [x + 9, y + 9], [x + 9, y + 9]]]),
    ]
    found = find_locations(adata, str(geojson(tmp_path / "cells.geojson", far, *cells)))
    np.testing.assert_allclose(found.xy, wanted)
    assert list(found.names) == ["a", "7", "c", "cell_4"]
    mirrored = [cell([ring[::-1] for ring in around(x, y)])]
    (tmp_path / "list.json").write_text(json.dumps(mirrored))  # QuPath's other form, turned the other way round
    np.testing.assert_allclose(find_locations(adata, str(tmp_path / "list.json")).xy, wanted[:1])


@pytest.mark.parametrize(
    ("features", "message"),
    [
        ([], "no features"),
        ([cell([1e7, 1e7], "Point")], "no cell lies near a spot"),
        ([cell([[1, 1], [2, 2]], "LineString")], "feature 1 is no Polygon"),
        ([{"type": "Feature", "geometry": None}], "feature 1 is no Polygon"),
        ([cell([[["a", 1]]])], "feature 1 is no Polygon"),
        ([cell([[]])], "feature 1 is no Polygon"),
        ([cell([[[float("nan"), 1]]])], "feature 1 is no Polygon"),
        ([cell([0, 0], "Point", id=1), cell([1, 0], "Point", id=1)], "occurs twice"),
    ],
)
def test_cells_that_cannot_be_used_are_one_line(adata, tmp_path, features, message):
    for feature in features:
        if feature["geometry"] and message == "occurs twice":
            feature["geometry"]["coordinates"] = list(adata.obsm["spatial"][0])
    with pytest.raises(InputError, match=message):
        find_locations(adata, str(geojson(tmp_path / "cells.geojson", *features)))


def test_a_file_of_cells_that_is_no_geojson_is_one_line(adata, tmp_path):
    (tmp_path / "a.geojson").write_text("no")
    for path in (tmp_path / "a.geojson", tmp_path / "nowhere.geojson"):
        with pytest.raises(InputError, match="not a readable GeoJSON file"):
            find_locations(adata, str(path))
