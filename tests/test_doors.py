"""What users bring: presets by name, configurations, features and splits of their own."""

import sys
from dataclasses import dataclass, field

import h5py
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy import sparse

from feature_extraction import command
from spabit_jax import presets
from spabit_jax.config import CONFIGS, Config, ModelConfig
from spabit_jax.data.features import encoder_name
from spabit_jax.data.locations import Locations
from spabit_jax.data.prepared import Prepared
from spabit_jax.data.split import split_spots
from spabit_jax.ensemble.predictor import features_at
from spabit_jax.ensemble.run_folder import read_config, read_inputs, read_run, write_config
from spabit_jax.errors import InputError
from spabit_jax.readers import read_section

SHAPE = (8, 9)


@pytest.fixture(scope="module")
def adata():
    """72 spots without an image, 100 px apart, as they are read from an AnnData of a user's."""
    rng, (row, col) = np.random.default_rng(0), (index.ravel() for index in np.indices(SHAPE))
    obs = pd.DataFrame({"array_row": row, "array_col": col}, index=[f"spot{i}" for i in range(len(row))])
    obs["fold"] = np.where(np.arange(len(row)) % 3, "test", "Train")
    given = AnnData(sparse.csr_matrix(rng.poisson(9, (len(row), 20)).astype(np.float32)), obs=obs)
    given.var_names = [f"G{i}" for i in range(20)]
    given.obsm["spatial"] = np.stack([col, row], axis=1) * 100.0 + 50
    given.obsm["X_mine"] = rng.standard_normal((len(row), 6))
    return read_section(given, name="own")


@pytest.fixture(scope="module")
def values(adata):
    return np.random.default_rng(1).standard_normal((adata.n_obs, 5)).astype(np.float32)


def prepare(adata, features=None, **data):
    config = Config().with_data(n_genes=8, **data)
    return Prepared(adata, config, "stain" if features is None else encoder_name(features), "cache")


def h5(path, attributes=(), **arrays):
    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            file[name] = array
        for name, value in attributes:
            file["coords"].attrs[name] = value
    return path


def shuffled(adata, values):
    order = np.random.default_rng(2).permutation(adata.n_obs)
    return np.array(adata.obs_names)[order], adata.obsm["spatial"][order], values[order]


@pytest.mark.parametrize("kind", ["npy", "npz", "parquet", "parquet_index", "hest", "trident", "obsm"])
def test_features_reach_their_spots_whatever_the_file(adata, values, tmp_path, kind):
    names, xy, rows = shuffled(adata, values)
    columns = pd.DataFrame(rows, columns=[f"f{i}" for i in range(5)])
    path, wanted = tmp_path / f"f.{kind.split('_')[0]}", values
    if kind == "npy":
        np.save(path, values)
    elif kind == "npz":
        np.savez(path, features=rows, barcodes=names.astype(str))
    elif kind == "parquet":
        columns.assign(barcode=names).to_parquet(path)
    elif kind == "parquet_index":
        columns.set_axis(names).to_parquet(path)
    elif kind == "hest":
        path = h5(tmp_path / "f.h5", embeddings=rows, barcodes=names.astype("S")[:, None], coords=xy.astype(int))
    elif kind == "trident":  # upper left corners of squares; spots lie off their centres
        corners = (xy - 48 + 7).astype(int)
        path = h5(tmp_path / "f.h5", [("patch_size_level0", 96)], features=rows, coords=corners)
    else:
        path, wanted = "obsm:X_mine", adata.obsm["X_mine"]
    prepared = prepare(adata, path)
    np.testing.assert_array_equal(prepared.features(), wanted.astype(np.float32))
    described = prepared.describe()
    assert described["features_width"] == wanted.shape[1] and len(described["features_sha256"]) == 64
    assert described["encoder"].endswith(str(path)) and described["patch_px"] == []
    assert "windows" not in repr(prepared) and prepared.section().image.shape[1] > 0


def test_windows_are_not_named_where_none_is_cut(adata):
    assert repr(prepare(adata)).endswith("image features: none; 0 related sections")


def test_new_locations_have_features_where_the_file_has_their_coordinates(adata, values, tmp_path):
    between = adata.obsm["spatial"][:4] + 50
    xy = np.concatenate([adata.obsm["spatial"], between])
    rows = np.concatenate([values, np.full((4, 5), 7, np.float32)])
    np.savez(tmp_path / "f.npz", features=rows, coords=xy)
    prepared = prepare(adata, tmp_path / "f.npz")
    np.testing.assert_array_equal(prepared.features(), values)
    there = Locations(np.array(list("abcd")), between, np.zeros((4, 2)))
    np.testing.assert_array_equal(features_at(prepared, there), rows[-4:])
    with pytest.raises(InputError, match=r"no features at 1 of the 4 locations of section own \(\(120, 100\)"):
        features_at(prepared, there._replace(xy=between + [[20, 0]] + np.array([[0, 0]] + [[-20, 0]] * 3)))
    np.save(tmp_path / "f.npy", values)
    for without in (tmp_path / "f.npy", "obsm:X_mine"):
        with pytest.raises(InputError, match="without coordinates: use --locations=spots"):
            features_at(prepare(adata, without), there)


@pytest.mark.parametrize("unit", [1, 1e-2, 1e-5])  # 100 px apart, rows and columns, and less
@pytest.mark.parametrize("width", [None, 100.0])
def test_a_place_without_features_does_not_take_its_neighbours_whatever_the_unit(adata, values, tmp_path, unit, width):
    moved, attributes = adata.copy(), [] if width is None else [("patch_size_level0", width * unit)]
    moved.obsm["spatial"] = adata.obsm["spatial"] * unit
    corners = moved.obsm["spatial"] - (0 if width is None else width * unit / 2)
    path = h5(tmp_path / "all.h5", attributes, features=values, coords=corners)
    np.testing.assert_array_equal(prepare(moved, path).features(), values)
    path = h5(tmp_path / "one_less.h5", attributes, features=values[1:], coords=corners[1:])
    with pytest.raises(InputError, match="no features at 1 of the 72 spots"):
        prepare(moved, path)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda p, n, v: np.save(p / "f.npy", v[1:]), "71 rows for the 72 spots of section own"),
        (lambda p, n, v: np.save(p / "f.npy", v[:, 0]), r"shape \(72,\)"),
        (lambda p, n, v: np.save(p / "f.npy", np.where(v > 1, np.nan, v)), "not a finite number"),
        (lambda p, n, v: np.savez(p / "f.npz", features=v, barcodes=n + "-1"), "72 of the 72 spots .* are spot0-1"),
        (lambda p, n, v: np.savez(p / "f.npz", features=v, barcodes=n[:9]), "72 rows of features and 9 barcodes"),
        (lambda p, n, v: np.savez(p / "f.npz", features=v, barcodes=np.repeat(n[:36], 2)), "barcode occurs twice"),
        (lambda p, n, v: np.savez(p / "f.npz", features=v, barcodes=n.astype(object)), "save text as text"),
        (lambda p, n, v: np.savez(p / "f.npz", what=v), "no array features or"),
        (lambda p, n, v: h5(p / "f.h5", img=np.zeros((2, 3, 3, 3)), barcode=n.astype("S")), "holds pictures"),
        (lambda p, n, v: h5(p / "f.h5", features=v, coords=np.zeros((72, 2))), "no features at 72 of the 72 spots"),
        (lambda p, n, v: (p / "f.npz").write_text("no"), "not a readable .npz file"),
        (lambda p, n, v: (p / "f.h5").write_text("no"), "not a readable .h5 file"),
        (lambda p, n, v: pd.DataFrame(v.astype(str)).add_prefix("f").to_parquet(p / "f.parquet"), "not of numbers"),
        (lambda p, n, v: (p / "f.txt").write_text("no"), "give .npy, .npz, .parquet, .h5, or obsm:KEY"),
    ],
)
def test_features_that_do_not_fit_are_one_line(adata, values, tmp_path, write, message):
    write(tmp_path, np.array(adata.obs_names, str), values)
    (path,) = tmp_path.iterdir()
    with pytest.raises(InputError, match=message) as error:
        prepare(adata, path)
    assert "\n" not in str(error.value)


def test_a_file_of_one_section_is_not_taken_for_another(adata, values, tmp_path):
    """Barcodes of two Visium sections are the same words."""
    np.save(tmp_path / "f.npy", values)
    other = adata[:, ::-1].copy()
    other.X.data += 1  # it is no copy
    other.uns["spabit"] = adata.uns["spabit"] | {"name": "other"}
    config, of_file = Config().with_data(n_genes=8), encoder_name(tmp_path / "f.npy")
    with pytest.raises(InputError, match="is of one section"):
        Prepared(adata, config, of_file, "cache", [Prepared(other, config, of_file, "cache")])
    both = Prepared(adata, config, "obsm:X_mine", "cache", [Prepared(other, config, "obsm:X_mine", "cache")])
    assert len(both.section().image) == 2 * adata.n_obs
    other.obsm["X_mine"] = other.obsm["X_mine"][:, :3]
    with pytest.raises(InputError, match="of another width in section other"):
        Prepared(adata, config, "obsm:X_mine", "cache", [Prepared(other, config, "obsm:X_mine", "cache")])


def test_features_that_are_not_there_are_one_line(adata, tmp_path):
    with pytest.raises(InputError, match="no such file"):
        prepare(adata, tmp_path / "f.npy")
    with pytest.raises(InputError, match=r"no obsm\['Y'\] \(there is X_mine\)"):
        prepare(adata, "obsm:Y")


def test_a_run_knows_its_features_and_split_again_and_that_they_have_changed(adata, values, tmp_path):
    np.save(tmp_path / "f.npy", values)
    pd.DataFrame({"barcode": adata.obs_names, "split": adata.obs["fold"]}).to_csv(tmp_path / "s.csv", index=False)
    prepared, run = prepare(adata, tmp_path / "f.npy", split=str(tmp_path / "s.csv")), tmp_path / "run"
    write_config(run, prepared, [0])
    content = read_run(run)
    again = read_inputs(run, content, read_config(run, content))
    np.testing.assert_array_equal(again.features(), values)
    np.testing.assert_array_equal(again.is_train, np.arange(72) % 3 == 0)
    np.save(tmp_path / "f.npy", values + 1)
    with pytest.raises(InputError, match="not what .* was trained on, inputs.features_sha256 was"):
        read_inputs(run, content, read_config(run, content))
    np.save(tmp_path / "f.npy", values)
    table = pd.read_csv(tmp_path / "s.csv")
    table.assign(split=table["split"].replace("Train", "test").where(table.index > 3, "train")).to_csv(
        tmp_path / "s.csv", index=False
    )
    with pytest.raises(InputError, match="was trained on, inputs.split_sha256 was"):
        read_inputs(run, content, read_config(run, content))


@pytest.mark.parametrize("words", [("Train", "test"), (True, False), (1, 0), (1.0, 0.0)])
def test_a_split_of_ones_own_says_train_or_test_of_each_spot(adata, tmp_path, words):
    wanted = np.arange(72) % 4 == 0
    said = pd.Series([words[0] if train else words[1] for train in wanted], adata.obs_names)
    own = adata.copy()
    own.obs["mine"] = said
    np.testing.assert_array_equal(split_spots(own, "obs:mine"), wanted)
    said.sample(frac=1, random_state=0).to_csv(tmp_path / "s.csv", header=["split"])
    np.testing.assert_array_equal(split_spots(adata, str(tmp_path / "s.csv")), wanted)
    said.rename(lambda name: f"{name}-1").to_csv(tmp_path / "s.csv", header=["split"], sep=";")
    np.testing.assert_array_equal(split_spots(adata, str(tmp_path / "s.csv")), wanted)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.iloc[1:], "spot spot0 is nothing: give train or test for each of 72"),
        (lambda s: s.where(s.index != "spot5", "valid"), "spot spot5 is 'valid'"),
        (lambda s: pd.Series("test", s.index), "no spot is train"),
        (lambda s: pd.concat([s, s.iloc[:1]]), "spot0 occurs twice"),
        (lambda s: pd.DataFrame({"a": s, "b": s}), "3 columns"),
    ],
)
def test_a_split_that_does_not_fit_is_one_line(adata, tmp_path, change, message):
    change(adata.obs["fold"].astype(str)).to_csv(tmp_path / "s.csv")
    with pytest.raises(InputError, match=message):
        split_spots(adata, str(tmp_path / "s.csv"))


def test_a_split_that_is_not_there_is_one_line(adata):
    with pytest.raises(InputError, match="no such column in obs, but .*fold"):
        split_spots(adata, "obs:other")
    with pytest.raises(InputError, match="not a readable CSV"):
        split_spots(adata, "nowhere.csv")
    with pytest.raises(InputError, match="data.split is 'half': it must be one of lattice, .*obs:COLUMN or FILE.csv"):
        Config().with_data(split="half").validate()


def test_a_subclass_of_config_survives_a_run_folder(adata, tmp_path, monkeypatch):
    @dataclass
    class MyModel(ModelConfig):
        gate: float = 0.5

    @dataclass
    class MyConfig(Config):
        model: MyModel = field(default_factory=MyModel)
        remark: str = ""

    config = MyConfig(remark="mine").with_data(n_genes=8)
    config.model.gate = 0.25
    prepared = Prepared(adata, config.validate(), "stain", "cache")
    write_config(tmp_path, prepared, [0])
    found = read_config(tmp_path, read_run(tmp_path))
    assert type(found) is MyConfig and type(found.model) is MyModel and found == config
    monkeypatch.delitem(CONFIGS, "MyConfig")
    with pytest.raises(InputError, match=r"configuration class 'MyConfig', which is not registered: .*--config=FILE"):
        read_config(tmp_path, read_run(tmp_path))


@pytest.mark.parametrize(("part", "name", "kind"), [("train", "loss", "loss"), ("model", "members", "member")])
def test_what_only_a_users_file_knows_is_asked_for(adata, tmp_path, part, name, kind):
    config = Config().with_data(n_genes=8)
    setattr(getattr(config, part), name, "mine")
    config.model.members = "mine" if name == "members" else "spabit"
    prepared = Prepared(adata, config, "stain", "cache")
    write_config(tmp_path, prepared, [0])
    with pytest.raises(InputError, match=f"the {kind} 'mine', which is not registered: .*--config=FILE"):
        read_config(tmp_path, read_run(tmp_path))


@pytest.mark.parametrize("given", ["trained", "experiments/configs/trained.py"])
def test_presets_are_found_from_any_folder(given, monkeypatch, tmp_path):
    from absl import flags

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(command, "FLAGS", flags.FlagValues())
    monkeypatch.setattr(command.flags, "FLAGS", command.FLAGS)
    argv = ["run", "--config.model.depth=3", f"--config={given}"]
    monkeypatch.setattr(sys, "argv", argv)
    found = command.run_preset(given)["get_config"]()
    assert found == presets.trained()
    assert command._preset_file("trained") == f"{presets.__file__}:trained"
    assert presets.get_config("trained") == presets.trained()
    (tmp_path / "mine.py").write_text("")
    assert command._preset_file("mine.py") == "mine.py" and command._preset_file("nowhere.py") == "nowhere.py"
