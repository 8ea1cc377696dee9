"""A run folder and a feature cache from when both had format 1 give the numbers that they gave."""

import tarfile

import anndata
import numpy as np
import pytest
from make import ARCHIVE, PLACE

import spabit_jax as sj
from spabit_jax.files import size_and_time

NEAR = {"rtol": 1e-3, "atol": 1e-3}  # another processor, or version of JAX


@pytest.fixture
def kept(tmp_path):
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    config = tmp_path / "run" / "config.json"
    config.write_text(config.read_text().replace(PLACE, str(tmp_path)))
    return tmp_path


def test_a_kept_run_predicts_what_it_did_from_its_features(kept):
    caches = [path for path in (kept / "cache").iterdir() if "_at_" not in path.name]
    before = {path: size_and_time(path) for path in caches}
    model = sj.load(kept / "run")
    predicted, was = model.predict(), anndata.read_h5ad(kept / "run" / "predictions.h5ad")
    np.testing.assert_allclose(predicted.X, was.X, **NEAR)
    np.testing.assert_allclose(predicted.layers["sd"], was.layers["sd"], **NEAR)
    grid = model.predict_at(sj.grid(model.prepared, 2))
    np.testing.assert_allclose(grid.X, np.load(kept / "grid.npy"), **NEAR)
    assert len(caches) == 2 and all(size_and_time(path) == known for path, known in before.items())
