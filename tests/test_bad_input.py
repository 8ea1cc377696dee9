"""Whatever a section, a setting or a file of a run holds: a result, or one line."""

import json
import os
from dataclasses import dataclass
from pathlib import Path

import anndata
import numpy as np
import pytest
from scipy import sparse

from feature_extraction.ending import refused_by_the_system
from spabit_jax.config import Config, ModelConfig
from spabit_jax.data.locations import find_locations
from spabit_jax.data.prepared import Prepared
from spabit_jax.ensemble.run_folder import checked_seeds, read_config, read_inputs, read_run, write_config
from spabit_jax.errors import Diverged, InputError
from spabit_jax.readers import read_section

N_SECTIONS, N_CONFIGS, N_FOLDERS = 60, 200, 150  # drawn at random, with a fixed seed
ODD = [np.nan, np.inf, 0, -1, 1e300, 1e-300, 10**20, "", "abc", "$\\frac{", None, True, [], {}, [3], np.ones(3)]


@pytest.fixture(scope="module")
def section(simulated):
    """As an .h5ad holds it: not read by us yet."""
    adata = anndata.read_h5ad(simulated)
    del adata.uns["spabit"]
    return adata


def one_line(action, *args):
    """What it gives, or None where it raises one line of InputError; whatever else it raises fails the test."""
    try:
        return action(*args)
    except InputError as error:
        assert str(error) and "\n" not in str(error)


def arrays(adata):
    found = read_section(adata, image="none")
    section = Prepared(found, Config(), "stain", "cache").section()
    assert np.isfinite(section.xy).all() and np.isfinite(section.expression[section.is_train]).all()
    return section


def replaced(values, drawn, odd):
    values = np.array(values, object if isinstance(odd, str) else np.float64)
    values[tuple(drawn.integers(0, size) for size in values.shape)] = odd
    return values


def spoil(adata, drawn):
    """One thing of a section changed into what it cannot be, or can only just be."""
    odd, number = (choices[drawn.integers(len(choices))] for choices in (ODD, [v for v in ODD if np.isscalar(v)]))
    xy, counts = adata.obsm["spatial"], adata.X.toarray()
    number = 10.0**20 if number == 10**20 else number
    spatial = adata.uns["spatial"]["tiny"]
    match drawn.integers(14):
        case 0:
            adata.obsm["spatial"] = xy * float(drawn.choice([0, 1e300, 1e-300, 1e9, -1, np.nan]))
        case 1:
            adata.obsm["spatial"] = replaced(xy, drawn, 1e15 if number is None else number)
        case 2:
            adata.obsm["spatial"] = [sparse.csr_matrix(xy), xy.astype(str), xy + 1j, xy > 9][drawn.integers(4)]
        case 3:
            adata.obsm["spatial"] = np.where(drawn.random(xy.shape) < drawn.random(), xy[0], xy)
        case 4:
            adata.X = replaced(counts, drawn, 0.5 if number is None or isinstance(number, str) else number)
        case 5:
            adata.X = [counts * 2.0**30, counts > 0, np.zeros_like(counts), np.ones_like(counts)][drawn.integers(4)]
        case 6:
            adata.var_names = [f"{name}$\\frac{{/" for name in adata.var_names]
        case 7:
            return adata[:, : drawn.integers(3)].copy()
        case 8:
            return adata[: drawn.integers(12)].copy()
        case 9:
            spatial["scalefactors"][drawn.choice(["spot_diameter_fullres", "tissue_hires_scalef"])] = odd
        case 10:
            spatial["images"]["hires"] = [odd, np.full((9, 9, 3), np.nan), np.zeros((0, 4, 3))][drawn.integers(3)]
        case 11:
            adata.uns["spatial"] = {"tiny": odd} if drawn.integers(2) else odd
        case 12:
            adata.obs[drawn.choice(["array_row", "array_col", "in_tissue"])] = 0 if np.ndim(odd) else odd
        case 13:
            key = ["lattice", "array_min", "array_max", "um_per_px", "spot_px", "image_scale", "turn", "format"]
            adata.uns["spabit"] = {key[drawn.integers(8)]: odd} if drawn.integers(4) else odd
    return adata


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::anndata.ImplicitModificationWarning")
def test_sections_of_all_kinds_are_read_or_refused(section):
    read = 0
    for seed in range(N_SECTIONS):
        read += one_line(arrays, spoil(section.copy(), np.random.default_rng(seed))) is not None
    assert N_SECTIONS / 10 < read < N_SECTIONS * 9 / 10  # else nothing is tried


def test_settings_of_all_kinds_are_taken_or_refused():
    drawn, taken = np.random.default_rng(0), 0
    for _ in range(N_CONFIGS):
        config = Config()
        part = [config, *(getattr(config, name) for name in ("data", "gat", "model", "train"))][drawn.integers(5)]
        names = [name for name in vars(part) if part is not config or name == "name"]
        setattr(part, names[drawn.integers(len(names))], ODD[drawn.integers(len(ODD))])
        taken += one_line(config.validate) is not None
    assert 0 < taken < N_CONFIGS / 2


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("model.width", 2**20, "config.model.width is 1048576: it must be smaller"),
        ("train.epochs", 10**10, "config.train.epochs is 10000000000: it must be a whole number"),
        ("train.batch_size", 10**20, "a whole number that is finite and at most"),
        ("train.learning_rate", float("nan"), "config.train.learning_rate is nan: it must be a number that is finite"),
        ("model.depth", "3", "config.model.depth is '3': it must be a whole number"),
        ("data.n_gene", 3, "config.data has no field 'n_gene'"),
        ("modle", 3, "config has no field 'modle'"),
        ("train.loss", "huber", "config.model.members is 'pretrained': it must be such that spabit is among them"),
        ("faults.array_neighbours", True, "array_neighbours is True: it must be False with the member pretrained"),
    ],
)
def test_a_setting_that_cannot_be_is_named(name, value, message):
    config = Config()
    *part, leaf = name.split(".")
    setattr(getattr(config, part[0]) if part else config, leaf, value)
    with pytest.raises(InputError, match=message):
        config.validate()


def test_a_part_is_of_the_kind_that_a_run_can_read_again():
    @dataclass
    class Gated(ModelConfig):
        gate: float = 0.3

    config = Config()
    config.model = Gated()
    with pytest.raises(InputError, match="must be a ModelConfig"):
        config.validate()


def test_numbers_of_numpy_are_numbers():
    config = Config()
    config.data.n_genes, config.train.learning_rate = np.int64(50), np.float64(0.1)
    assert json.loads(json.dumps(config.validate().to_dict()))["data"]["n_genes"] == 50


@pytest.mark.parametrize("name", ["..", "a/b", "", "x" * 300, "a\nb", 3])
def test_a_configuration_is_named_by_one_component_of_a_path(name):
    with pytest.raises(InputError, match="config.name is"):
        Config(name=name).validate()


@pytest.mark.parametrize("seeds", [range(0), range(10**20), [-1], [2**70], [0, 0], [0.5]])
def test_seeds_that_cannot_be_are_refused(seeds):
    with pytest.raises(InputError, match="seed"):
        checked_seeds(seeds)


def test_counts_that_float32_rounds_are_said(section, caplog):
    section.X = section.X.astype(np.float64)
    section.X[0, 0] = 2**24 + 1
    read_section(section, image="none")
    assert "counts from 16777216 on, as 16777216, lose their last digits" in caplog.text
    section.X[0, 0] = 1e300
    with pytest.raises(InputError, match="above 1.09951e\\+12"):
        read_section(section, image="none")


def test_a_link_to_what_is_gone_is_not_no_image(simulated, tmp_path):
    os.symlink(simulated, tmp_path / "tiny.h5ad")
    os.symlink(tmp_path / "gone.png", tmp_path / "tiny.png")
    with pytest.raises(InputError, match="a link to .*gone.png, which is not there"):
        read_section(tmp_path / "tiny.h5ad")


@pytest.mark.parametrize("times", ["9" * 20, "9" * 5000, "0", "٣" * 30, "1001"])
def test_a_lattice_is_not_denser_than_can_be(section, times):
    with pytest.raises(InputError, match="from 1 to 1000"):
        find_locations(section, f"grid:{times}x")


POINT = {"type": "Feature", "geometry": {"type": "Point", "coordinates": [300, 300]}}


@pytest.mark.parametrize(
    "content",
    [
        "[" * 100_000,
        json.dumps({"features": [POINT | {"properties": [1]}]}),
        json.dumps({"features": [POINT | {"geometry": {"type": "Point", "coordinates": [300]}}]}),
        json.dumps({"features": [POINT | {"geometry": {"type": "MultiPolygon", "coordinates": []}}]}),
        json.dumps({"features": [POINT | {"geometry": {"type": "Point", "coordinates": [1e300, 1]}}]}),
    ],
)
def test_geojson_of_all_kinds(simulated, tmp_path, content):
    path = tmp_path / "cells.geojson"
    path.write_text(content)
    found = one_line(find_locations, read_section(simulated), str(path))
    assert found is None or len(found.xy) == 1


def test_a_damaged_config_of_a_run_is_one_line(simulated, tmp_path):
    prepared = Prepared(read_section(simulated, image="none"), Config(), "stain", str(tmp_path / "cache"))
    write_config(tmp_path, prepared, [0])
    path, drawn = tmp_path / "config.json", np.random.default_rng(0)
    whole, read = json.loads(path.read_text()), 0

    def inputs():
        content = read_run(tmp_path)
        return read_inputs(tmp_path, content, read_config(tmp_path, content))

    assert inputs() is not None
    odd = [value for value in ODD if isinstance(value, str | list | dict | int | None)]
    for _ in range(N_FOLDERS):
        content = json.loads(json.dumps(whole))
        place, keys = content, []
        while isinstance(place, dict) and place and (not keys or drawn.integers(3)):
            keys.append(list(place)[drawn.integers(len(place))])
            parent, place = place, place[keys[-1]]
        parent[keys[-1]] = odd[drawn.integers(len(odd))]
        path.write_text(json.dumps(content))
        read += one_line(inputs) is not None
    assert 0 < read < N_FOLDERS


def test_a_backend_that_is_not_there_is_one_line():
    error = RuntimeError("Unable to initialize backend 'cuda': no such thing\n(set JAX_PLATFORMS='')")
    assert "JAX_PLATFORMS" in refused_by_the_system(error) and "\n" not in refused_by_the_system(error)
    assert issubclass(Diverged, InputError) and issubclass(Diverged, FloatingPointError)


def test_names_with_dollars_are_drawn_as_they_are(tmp_path):
    from spabit_jax.evaluation.plots import draw_pcc_scatter, one_panel

    with one_panel(4.6, tmp_path / "pcc.png") as ax:
        draw_pcc_scatter(ax, np.array([0.5]), np.array([np.nan]), "$\\frac{", "a$b$")
    with one_panel(4.6, tmp_path / "pcc.png") as ax:
        draw_pcc_scatter(ax, np.array([0.5]), np.array([0.6]), "$\\frac{", "a$b$")
    assert Path(tmp_path / "pcc.png").stat().st_size
